// Device memory that is freed with its owner, and says what is missing where there is none. Included by .cu files only.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "core/cuda.h"

namespace tactic::cuda {

class Memory {
 public:
  Memory() = default;
  Memory(std::size_t bytes, const char* purpose, const char* remedy) : bytes_(bytes) {
    const cudaError_t error = cudaMalloc(&data_, std::max<std::size_t>(bytes, 1));
    if (error != cudaErrorMemoryAllocation) {
      check(error, purpose);
      return;
    }
    cudaGetLastError();  // as in check()
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), purpose);
    throw Error(Status::out_of_memory, std::string(purpose) + " needs " + std::to_string(bytes >> 20) +
                                           " MiB at once, the device has " + std::to_string(free >> 20) + " MiB free: " + remedy);
  }
  Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() { cudaFree(data_); }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace tactic::cuda
