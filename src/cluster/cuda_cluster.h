// Work on the tokens of one cluster, by a warp or, where it is large, by a thread block: their order, sums of their rows.
// Included by cluster/cuda*.cu only.
//
// A cluster's sums have a fixed order (tokens ascending, dealt out to groups of threads, groups added in turn), so that a seed
// gives one result.
#pragma once

#include "cluster/cuda_batch.h"

namespace tactic::cuda {

constexpr int kClusterThreads = 128;
constexpr int kClusterWarps = kClusterThreads / 32;
constexpr int kSortTokens = 1024;  // sorted in shared memory; larger clusters are read out of `nearest` in order
constexpr int kLargeBlocks = 64;   // thread blocks a problem that look for large clusters

struct ClusterShared {
  union {
    std::int32_t tokens[kSortTokens];
    std::int32_t of_warp[kClusterWarps][2][kWarpTokens];  // as found, in order
  };
  float partial[kClusterWarps][kMaxHeadDim];
  float reduce[kClusterWarps];
};

// Who works on a cluster: warp `number` of `count`. A block's warps share its tokens and add up through shared memory.
struct Crew {
  int number;
  int count;
  __device__ void barrier() const {
    if (count > 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
};

// Tokens of a cluster of up to kWarpTokens, ascending, by one warp.
__device__ inline const std::int32_t* sort_of_warp(const std::int32_t* order, int size, std::int32_t (&shared)[2][kWarpTokens]) {
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < (size + 3) / 4 * 4; i += 32) shared[0][i] = i < size ? order[i] : 0x7fffffff;
  __syncwarp();
  for (int i = lane; i < size; i += 32) {
    const std::int32_t token = shared[0][i];
    int rank = 0;
    for (int j = 0; j < size; j += 4) {
      const int4 other = *reinterpret_cast<const int4*>(&shared[0][j]);
      rank += (other.x < token) + (other.y < token) + (other.z < token) + (other.w < token);
    }
    shared[1][rank] = token;
  }
  __syncwarp();
  return shared[1];
}

// The same for a large cluster by a thread block: in shared memory where they fit, else in place in `order`.
__device__ inline const std::int32_t* sort_of_block(std::int32_t* order, int size, const std::int32_t* nearest, int n, int c,
                                                    ClusterShared& shared) {
  const int thread = threadIdx.x;
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
    for (int warp = 0; warp < kClusterWarps; ++warp) {
      if (warp < thread / 32) before += counts[warp];
      filled += counts[warp];
    }
    if (mine) order[before + __popc(votes & ((1u << (thread % 32)) - 1))] = token;
    __syncthreads();
  }
  return order;
}

// The first `count` clusters of a problem: blocks 0 .. take those of up to kWarpTokens, one a warp, the last kLargeBlocks the
// others. f(crew, c, first, size, tokens).
template <typename F>
__device__ __forceinline__ void for_clusters(const Batch& batch, int problem, int count, ClusterShared& shared, F&& f) {
  const Work& work = batch.work;
  const Job& job = batch.jobs[problem / batch.heads];
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const std::int32_t* begin = work.begin + static_cast<std::int64_t>(problem) * (batch.columns + 1);
  const int small_blocks = batch.columns / kClusterWarps;
  if (static_cast<int>(blockIdx.x) < small_blocks) {
    const int warp = threadIdx.x / 32;
    const int c = blockIdx.x * kClusterWarps + warp;
    if (c >= count) return;
    const int first = begin[c];
    const int size = begin[c + 1] - first;
    if (size > kWarpTokens) return;
    f(Crew{0, 1}, c, first, size, sort_of_warp(work.order + rows + first, size, shared.of_warp[warp]));
    return;
  }
  const int large = work.state[problem].large;
  for (int i = static_cast<int>(blockIdx.x) - small_blocks; i < large; i += kLargeBlocks) {
    const int c = work.large[static_cast<std::int64_t>(problem) * batch.columns + i];
    const int first = begin[c];
    const int size = begin[c + 1] - first;
    const std::int32_t* tokens = sort_of_block(work.order + rows + first, size, work.nearest + rows, job.n, c, shared);
    f(Crew{static_cast<int>(threadIdx.x) / 32, kClusterWarps}, c, first, size, tokens);
    __syncthreads();
  }
}
inline dim3 grid_of_clusters(const Batch& batch) {
  return {static_cast<unsigned>(batch.columns / kClusterWarps + kLargeBlocks),
          static_cast<unsigned>(batch.job_count * batch.heads)};
}

// A group of kDim / 8 lanes reads whole rows, 8 elements a lane; groups take tokens in turn.
template <int kDim>
struct Lanes {
  static constexpr int kCount = kDim / 8;
  static constexpr int kGroups = 32 / kCount;
  __device__ static int group() { return static_cast<int>(threadIdx.x) % 32 / kCount; }
  __device__ static int element() { return static_cast<int>(threadIdx.x) % 32 % kCount * 8; }
  __device__ static bool holds_row() { return static_cast<int>(threadIdx.x) % 32 < kCount; }  // after sum_of_crew()
};

// f(token) for this lane's share of the tokens.
template <int kDim, typename F>
__device__ __forceinline__ void for_tokens(const Crew& crew, const std::int32_t* tokens, int size, F&& f) {
  using L = Lanes<kDim>;
  if (L::group() >= L::kGroups) return;
#pragma unroll 4
  for (int i = crew.number * L::kGroups + L::group(); i < size; i += crew.count * L::kGroups) f(tokens[i]);
}

// x summed over all groups of the crew: the first kDim / 8 lanes of every warp hold the row's elements then.
template <int kDim>
__device__ __forceinline__ void sum_of_crew(const Crew& crew, float (&x)[8], ClusterShared& shared) {
  using L = Lanes<kDim>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float mine = x[e];
#pragma unroll
    for (int g = 1; g < L::kGroups; ++g) x[e] += __shfl_sync(~0u, mine, (lane + g * L::kCount) % 32);
  }
  if (crew.count == 1) return;
  crew.barrier();
  if (L::holds_row()) {
#pragma unroll
    for (int e = 0; e < 8; ++e) shared.partial[crew.number][L::element() + e] = x[e];
  }
  crew.barrier();
  if (L::holds_row()) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      x[e] = 0;
      for (int warp = 0; warp < crew.count; ++warp) x[e] += shared.partial[warp][L::element() + e];
    }
  }
}

__device__ __forceinline__ float sum_of_warp(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
__device__ __forceinline__ float largest_of_warp(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
// One number a lane, summed over the crew.
__device__ __forceinline__ float sum_of_crew(const Crew& crew, float x, ClusterShared& shared) {
  x = sum_of_warp(x);
  if (crew.count == 1) return x;
  crew.barrier();
  if (threadIdx.x % 32 == 0) shared.reduce[crew.number] = x;
  crew.barrier();
  x = 0;
  for (int warp = 0; warp < crew.count; ++warp) x += shared.reduce[warp];
  return x;
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
__device__ __forceinline__ uint4 pack_row(const float (&x)[8]) {
  return make_uint4(pack_half(x[0], x[1]), pack_half(x[2], x[3]), pack_half(x[4], x[5]), pack_half(x[6], x[7]));
}

}  // namespace tactic::cuda
