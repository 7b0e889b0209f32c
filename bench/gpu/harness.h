// Times of graphs of layer calls with a cold L2 cache, and the rows of the results.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace tactic::bench::gpu {

// Throws std::runtime_error naming `what` unless the call succeeded.
void check(cudaError_t status, const char* what);

struct FreeDevice {
  void operator()(void* data) const { cudaFree(data); }
};

// Elements on the device, not initialised.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t count) : count_(count) {
    void* data = nullptr;
    check(cudaMalloc(&data, count * sizeof(T)), "cudaMalloc");
    data_.reset(static_cast<T*>(data));
  }
  T* data() const { return data_.get(); }
  std::size_t size() const { return count_; }
  void copy_from(const std::vector<T>& host) {
    check(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  std::vector<T> to_host() const {
    std::vector<T> host(count_);
    check(cudaMemcpy(host.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
    return host;
  }

 private:
  std::unique_ptr<T, FreeDevice> data_;
  std::size_t count_ = 0;
};

// Microseconds a layer.
struct Times {
  double median = 0, p10 = 0, p90 = 0;
};

// Captures one call per layer into a graph and replays it; before each replay, outside of the timed part, the L2 cache is swept
// by reading 256 MB.
class Timer {
 public:
  explicit Timer(int repetitions);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  using Call = std::function<void(int layer, cudaStream_t)>;
  Times operator()(int layers, const Call& call);
  cudaStream_t stream() const { return stream_; }

 private:
  void sweep();
  int repetitions_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  DeviceArray<std::uint32_t> sweep_, sink_;
};

// A row of the results. share: of the tokens attended (1: all); bytes: what the call must read.
struct Row {
  std::string what, variant;
  int q_heads = 0, kv_heads = 0, head_dim = 0, batch = 0;
  std::int64_t context = 0;
  double share = 1;
  int layers = 0;
  Times times;
  double bytes = 0;
  std::string error, note;
};

// Prints each row as it comes and keeps it in a CSV file of the columns that peers.py writes, too.
class Results {
 public:
  explicit Results(const std::string& path);
  void add(const Row& row);

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

// Uniform in [0, 1) from a counter: no state, the same on host and device.
__host__ __device__ inline float uniform(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ull + index + 0x632be59bd9b4e019ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<float>((x ^ (x >> 31)) >> 40) * (1.0f / 16777216.0f);
}

}  // namespace tactic::bench::gpu
