// What the launches of this room ask of a device: its size, shared memory, scratch cut into arrays. Included by .cu files only.
#pragma once

#include <cstddef>
#include <string>

#include "core/error.h"

namespace tactic::cuda {

// Stretches of the scratch, each on a 256-byte border.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  T* take(std::size_t count) {
    std::byte* at = base_ + used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// Of the current device.
struct DeviceFacts {
  int processors = 0;
  int shared_bytes = 0;          // a block can have
  int clusters_at_once[8] = {};  // by log2 of their blocks; 0 where there are none
};
const DeviceFacts& device_facts();

// Throws Error(unsupported) where a block of `what` needs more shared memory than it can have.
inline void check_shared_bytes(const char* what, int clusters, std::size_t bytes, std::size_t most, const char* remedy) {
  if (bytes <= most) return;
  throw Error(Status::unsupported, std::string(what) + ": " + std::to_string(clusters) + " clusters a KV head need " +
                                       std::to_string(bytes) + " bytes of shared memory a block, the device has " +
                                       std::to_string(most) + "; use " + remedy);
}

}  // namespace tactic::cuda
