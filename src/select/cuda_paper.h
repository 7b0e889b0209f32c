// What the kernels of Algorithm 1 share: its arrays, the order of a head's clusters, the arithmetic of its budget. Included by
// .cu files only.
#pragma once

#include "core/cuda.h"
#include "select/cuda_piece.h"
#include "select/paper_fit.h"

namespace tactic::cuda {

struct PaperTask {
  SelectTask select;
  FitShares shares;
  float mass;
  std::int32_t sample_stride;
  std::int32_t* order;     // [slots, G, capacity] columns, most promising first
  std::int32_t* start;     // [slots, G, capacity + 1] tokens before a place of the order
  std::int32_t* start_of;  // [slots, G, capacity] tokens before a column
  float* fixed;            // [slots, G] share of the always-attended tokens in the estimated mass
  float* sample;           // [slots, G, sample_stride] exact weights: the first tokens in order, then the two windows
};

// A query head's rows of these arrays.
struct PaperHead {
  int number, slot, sequence, kv_head, member;
  int count;  // columns
  std::int32_t* order;
  std::int32_t* start;
  std::int32_t* start_of;
  float* sample;
  const std::int32_t* begin;  // of the index
  __device__ PaperHead(const PaperTask& task, int head) : number(head) {
    const DeviceIndex& index = task.select.index;
    slot = head / task.select.group;
    member = head - slot * task.select.group;
    sequence = slot / task.select.kv.kv_heads;
    kv_head = slot - sequence * task.select.kv.kv_heads;
    const int all = index.clusters[slot];
    count = all >= 0 && all <= index.capacity ? all : 0;
    const auto at = static_cast<std::int64_t>(head);
    order = task.order + at * index.capacity;
    start = task.start + at * (index.capacity + 1);
    start_of = task.start_of + at * index.capacity;
    sample = task.sample + at * task.sample_stride;
    begin = index.begin + static_cast<std::int64_t>(slot) * (index.capacity + 64);
  }
};

// 1 + 1/2 + ... + 1/n less Euler's constant, n >= 1: Euler and Maclaurin's sum; the next term is below 1e-9 from n = 12 on.
__device__ inline double harmonic(double n) {
  const double square = 1 / (n * n);
  return log(n) + 0.5 / n - square * (1.0 / 12) + square * square * (1.0 / 120);
}

// Sum of max(0, a / (i + 1) + b) over places i = head .. k - 1, without a loop.
struct FittedSum {
  Fit fit;
  double low, high;  // places from low to high - 1 have positive values
  double below;      // harmonic(low)
  __device__ FittedSum(const Fit& f, double head, double n) : fit(f), low(head), high(n) {
    const double zero = f.b != 0 ? -f.a / f.b - 1 : -1;  // the place where the curve crosses 0
    if (f.a > 0 && f.b < 0) high = fmin(n, ceil(zero));
    if (f.a < 0 && f.b > 0) low = fmax(head, floor(zero) + 1);
    if ((f.a <= 0 && f.b <= 0) || high < low) high = low;
    below = harmonic(fmax(low, 1.0));
  }
  __device__ double up_to(double k) const {
    const double end = fmin(k, high);
    return end <= low ? 0.0 : fit.a * (harmonic(end) - below) + fit.b * (end - low);
  }
};

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// One warp: k, the fewest tokens whose weights, exact up to `head` and fitted behind it, reach P of the sum.
__device__ inline int find_budget(const PaperTask& task, const PaperHead& head, int lane) {
  const int n = head.start[head.count];
  if (n == 0) return 0;
  const FitPlaces places = fit_places(n, task.shares);
  const int exact = static_cast<int>(places.head), each = (exact + 31) / 32;
  const int first = min(lane * each, exact), last = min(first + each, exact);
  double own = 0;
#pragma unroll 8
  for (int i = first; i < last; ++i) own += static_cast<double>(head.sample[i]);
  double up_to = own;  // over the lanes up to this one
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const double other = __shfl_up_sync(~0u, up_to, o);
    if (lane >= o) up_to += other;
  }
  const double of_exact = __shfl_sync(~0u, up_to, 31), fixed = static_cast<double>(task.fixed[head.number]);
  Fit fit{};
  if (exact < n) {
    const int sizes[2] = {static_cast<int>(places.first_end - places.first_begin),
                          static_cast<int>(places.second_end - places.second_begin)};
    double means[2] = {};
    const float* at = head.sample + exact;
    for (int w = 0; w < 2; at += sizes[w], ++w) {
      for (int i = lane; i < sizes[w]; i += 32) means[w] += static_cast<double>(at[i]);
      means[w] = warp_sum(means[w]) / sizes[w];
    }
    fit = fit_curve(static_cast<double>(places.first), means[0], static_cast<double>(places.second), means[1]);
  }
  const FittedSum fitted(fit, exact, n);
  const double sum = fixed + of_exact + fitted.up_to(n), wanted = static_cast<double>(task.mass) * sum;
  if (!isfinite(sum)) return n;
  if (fixed >= wanted) return 0;
  if (fixed + of_exact >= wanted) {
    const int owner = __ffs(static_cast<int>(__ballot_sync(~0u, fixed + up_to >= wanted))) - 1;
    int k = first;
    for (double reached = fixed + up_to - own; lane == owner && k < last && reached < wanted; ++k)
      reached += static_cast<double>(head.sample[k]);
    return __shfl_sync(~0u, k, owner);
  }
  int low = exact, high = n;  // too few; enough
  while (high - low > 1) {
    const int probe = low + static_cast<int>(static_cast<std::int64_t>(high - low) * (lane + 1) / 32);
    const bool enough = lane == 31 || fixed + of_exact + fitted.up_to(probe) >= wanted;
    const int owner = __ffs(static_cast<int>(__ballot_sync(~0u, enough))) - 1;
    const int below = __shfl_up_sync(~0u, probe, 1);
    const int next_low = __shfl_sync(~0u, lane == 0 ? low : below, owner);
    high = __shfl_sync(~0u, probe, owner);
    low = next_low;
    if (high <= low) high = low + 1;
  }
  return high;
}

}  // namespace tactic::cuda
