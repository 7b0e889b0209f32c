// Work of a thread block on the tokens of one cluster: their order, and sums of their rows. Included by cluster/cuda*.cu only.
//
// A block's sums have a fixed order (tokens ascending, dealt out to groups of threads, groups added in turn), so that a seed
// gives one result.
#pragma once

#include "cluster/cuda_batch.h"

namespace tactic::cuda {

constexpr int kClusterThreads = 128;
constexpr int kSortTokens = 1024;  // sorted in shared memory; larger clusters are read out of `nearest` in order

struct ClusterShared {
  std::int32_t tokens[kSortTokens];
  float partial[kClusterThreads * 8];  // [groups, dim] sums of groups of threads
  float mean[kMaxHeadDim];
  float reduce[kClusterThreads / 32];
};

// Tokens of cluster c in ascending order: in shared.tokens where they fit, else in place in `order`. Returns where they are.
__device__ inline const std::int32_t* sort_tokens(std::int32_t* order, int size, const std::int32_t* nearest, int n, int c,
                                                  ClusterShared& shared) {
  const int thread = threadIdx.x;
  if (size <= kClusterThreads) {
    const std::int32_t token = thread < size ? order[thread] : 0x7fffffff;
    auto* unsorted = reinterpret_cast<std::int32_t*>(shared.partial);
    unsorted[thread] = token;
    __syncthreads();
    int rank = 0;
    for (int i = 0; i < size; i += 4) {
      const int4 other = *reinterpret_cast<const int4*>(unsorted + i);
      rank += (other.x < token) + (other.y < token) + (other.z < token) + (other.w < token);
    }
    if (thread < size) shared.tokens[rank] = token;
    __syncthreads();
    return shared.tokens;
  }
  if (size <= kSortTokens) {
    int padded = 2 * kClusterThreads;
    while (padded < size) padded *= 2;
    for (int i = thread; i < padded; i += kClusterThreads) shared.tokens[i] = i < size ? order[i] : 0x7fffffff;
    for (int run = 2; run <= padded; run *= 2) {
      for (int step = run / 2; step > 0; step /= 2) {
        __syncthreads();
        for (int i = thread; i < padded / 2; i += kClusterThreads) {
          const int low = 2 * i - (i & (step - 1));
          const std::int32_t a = shared.tokens[low];
          const std::int32_t b = shared.tokens[low + step];
          if ((a > b) == ((low & run) == 0)) {
            shared.tokens[low] = b;
            shared.tokens[low + step] = a;
          }
        }
      }
    }
    __syncthreads();
    return shared.tokens;
  }
  int* counts = reinterpret_cast<int*>(shared.reduce);
  int filled = 0;
  for (int start = 0; start < n; start += kClusterThreads) {
    const int token = start + thread;
    const bool mine = token < n && nearest[token] == c;
    const unsigned votes = __ballot_sync(~0u, mine);
    if (thread % 32 == 0) counts[thread / 32] = __popc(votes);
    __syncthreads();
    int before = filled;
    for (int warp = 0; warp < kClusterThreads / 32; ++warp) {
      if (warp < thread / 32) before += counts[warp];
      filled += counts[warp];
    }
    if (mine) order[before + __popc(votes & ((1u << (thread % 32)) - 1))] = token;
    __syncthreads();
  }
  return order;
}

// A group of dim / 8 threads reads whole rows; groups take the cluster's tokens in turn.
struct Group {
  __device__ explicit Group(int dim)
      : lanes(dim / 8), groups(kClusterThreads / lanes), number(threadIdx.x / lanes), i(threadIdx.x % lanes * 8) {}
  __device__ bool works() const { return number < groups; }
  int lanes;
  int groups;
  int number;
  int i;  // first of this thread's 8 elements
};

// mean [dim] = factor * the sum over groups of their 8 elements a thread. partial [groups, dim] is shared memory. Ends in a
// barrier.
__device__ inline void mean_of_groups(const float (&sum)[8], const Group& group, int dim, float factor, float* partial,
                                      float* mean) {
  if (group.works()) {
#pragma unroll
    for (int e = 0; e < 8; ++e) partial[group.number * dim + group.i + e] = sum[e];
  }
  __syncthreads();
  for (int e = threadIdx.x; e < dim; e += kClusterThreads) {
    float total = 0;
    for (int g = 0; g < group.groups; ++g) total += partial[g * dim + e];
    mean[e] = total * factor;
  }
  __syncthreads();
}

__device__ __forceinline__ void load_y(const __half* y, float (&x)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(y);
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[j]));
    x[2 * j] = pair.x;
    x[2 * j + 1] = pair.y;
  }
}

// Over the block; all threads get it.
template <typename Op>
__device__ inline float reduce(float x, ClusterShared& shared, Op&& op) {
  for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(~0u, x, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.reduce[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared.reduce[0];
  for (int warp = 1; warp < kClusterThreads / 32; ++warp) x = op(x, shared.reduce[warp]);
  return x;
}

}  // namespace tactic::cuda
