// Histograms of the logarithm of a score in shared memory, and the bins where their sums reach what is needed. Included by .cu
// files only.
#pragma once

#include <cstdint>

namespace tactic::cuda {

constexpr int kBins = 1024;
constexpr float kBinsPerOctave = 16;

__device__ __forceinline__ int bin_of(float log_score, float top) {
  return min(max(static_cast<int>((top - log_score) * kBinsPerOctave), 0), kBins - 1);
}

// One warp: the first bin up to which row `sum` holds `need`; kBins - 1 when none. held: the sum up to and with it.
__device__ __forceinline__ int find_cut(const std::uint32_t* sum, std::uint32_t need, int lane, std::uint32_t* held) {
  constexpr int kEach = kBins / 32;
  std::uint32_t own = 0;
  for (int i = 0; i < kEach; ++i) own += sum[lane * kEach + i];
  std::uint32_t up_to = own;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const std::uint32_t other = __shfl_up_sync(~0u, up_to, o);
    if (lane >= o) up_to += other;
  }
  const std::uint32_t reached = __ballot_sync(~0u, up_to >= need);
  const int owner = reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : 31;
  std::uint32_t running = up_to - own;
  int bin = lane * kEach;
  for (int i = 0; i < kEach; ++i, ++bin) {
    running += sum[lane * kEach + i];
    if (running >= need || i == kEach - 1) break;
  }
  *held = __shfl_sync(~0u, running, owner);
  return __shfl_sync(~0u, min(bin, kBins - 1), owner);
}

// One warp: the sum of row `sum` up to and with bin `cut`.
__device__ __forceinline__ std::uint32_t sum_to(const std::uint32_t* sum, int cut, int lane) {
  std::uint32_t own = 0;
  for (int i = lane; i <= cut; i += 32) own += sum[i];
  return __reduce_add_sync(~0u, own);
}

}  // namespace tactic::cuda
