// Work of a thread block on the tokens of one cluster: their order, and sums of their rows. Included by cluster/cuda*.cu only.
//
// A block's sums have a fixed order (tokens ascending, dealt out to groups of threads, groups added in turn), so that a seed
// gives one result.
#pragma once

#include "cluster/cuda_batch.h"

namespace tactic::cuda {

constexpr int kClusterThreads = 128;
constexpr int kSortTokens = 2048;  // sorted in shared memory; larger clusters are read out of `nearest` in order

struct ClusterShared {
  std::int32_t tokens[kSortTokens];
  float partial[kClusterThreads * 8];  // [groups, dim]
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

// Adds load(token, i, x): elements i .. i + 7 of the rows of `tokens`, into shared.mean [dim], times `factor`. Ends in a barrier.
template <typename Load>
__device__ inline void mean_of_rows(const std::int32_t* tokens, int size, int dim, float factor, ClusterShared& shared,
                                    Load&& load) {
  const int lanes = dim / 8;
  const int groups = kClusterThreads / lanes;
  const int group = threadIdx.x / lanes;
  const int i = threadIdx.x % lanes * 8;
  if (group < groups) {
    float sum[8] = {};
#pragma unroll 4
    for (int at = group; at < size; at += groups) {
      float x[8];
      load(tokens[at], i, x);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += x[e];
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) shared.partial[group * dim + i + e] = sum[e];
  }
  __syncthreads();
  for (int e = threadIdx.x; e < dim; e += kClusterThreads) {
    float sum = 0;
    for (int g = 0; g < groups; ++g) sum += shared.partial[g * dim + e];
    shared.mean[e] = sum * factor;
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
