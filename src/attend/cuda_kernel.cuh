// The attention kernel: a fixed grid in which every thread block weighs an equal stretch of all problems' tiles.
//
// Computes softmax(q K' scale) V over the listed, always-attended and represented entries of every (sequence, KV head). Bytes: the K
// and V rows once for the G heads, v_dim + 4 + 4 G a represented cluster, 2 * 4 G (v_dim + 2) for every block that shares a problem
// with another.
#pragma once

#include "attend/cuda_merge.cuh"
#include "core/cuda.h"

namespace tactic::cuda {


template <typename Math, int kStages>
__global__ void __launch_bounds__(32 * kMaxWarps, 1) attend_kernel(const __grid_constant__ AttendArgs a) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float maximum[kMaxWarps][8], sum[kMaxWarps][8];
  __shared__ int shared_problem[2];  // the problems that the block shares with others: first and last of its stretch
  __shared__ bool merges[2];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, warps = static_cast<int>(blockDim.x) / 32;
  unsigned char* fold_memory = memory + static_cast<std::size_t>(warps) * a.ring_bytes;
  int* first_tile = reinterpret_cast<int*>(fold_memory + a.fold_bytes);
  const Fold fold{reinterpret_cast<float*>(fold_memory), maximum, sum};

  let_successor_start();
  wait_for_predecessor();
  const Stretch stretch = divide(a, first_tile);
  Math math(a);
  Ring<kStages> ring(a, memory + static_cast<std::size_t>(warp) * a.ring_bytes, first_tile, stretch, warp, warps);
  if (stretch.begin < stretch.end) ring.start(math);
  write_empty(a, first_tile);
  if (stretch.begin >= stretch.end) return;

  int next = ring.first(), stage = 0, shared = 0;
  const float inverse_v_scale = 1.0f / a.v_scale;
  for (int problem = stretch.problem; problem < a.problems && first_tile[problem] < stretch.end; ++problem) {
    const int begin = first_tile[problem], end = first_tile[problem + 1];
    if (begin == end) continue;
    math.begin(a, problem);
    for (; next < min(end, stretch.end); next += warps) {
      const std::uint32_t at = ring.wait(stage);
      const StageHead head = ring.head(at);
      if (head.represented) {
        math.weigh_clusters(at, head.valid, a.group, inverse_v_scale);
      } else {
        math.weigh_tokens(at, head.valid);
      }
      __syncwarp();
      ring.refill(math, stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    const bool complete = begin >= stretch.begin && end <= stretch.end;
#pragma unroll
    for (int tile = 0; tile < Math::kTiles; ++tile) {
      const int heads = min(a.group - 8 * tile, 8);
      __syncthreads();  // the block before has been folded
      math.end(tile, heads, fold.out + static_cast<std::size_t>(warp) * heads * (a.v_dim + 4), a.v_dim + 4, maximum[warp],
               sum[warp]);
      __syncthreads();
      fold_warps(a, fold, problem, 8 * tile, heads, complete, Math::kLift);
    }
    if (!complete) {
      if (thread == 0) shared_problem[shared] = problem;
      ++shared;
    }
  }
  __syncthreads();
  if (thread < shared) {
    const int problem = shared_problem[thread];
    const int first = block_of_tile(first_tile[problem], stretch.total);
    merges[thread] = arrive_last(a, problem, block_of_tile(first_tile[problem + 1] - 1, stretch.total) - first + 1);
  }
  __syncthreads();
  for (int i = 0; i < shared; ++i) {
    if (!merges[i]) continue;
    const int problem = shared_problem[i], first = block_of_tile(first_tile[problem], stretch.total);
    const int last = block_of_tile(first_tile[problem + 1] - 1, stretch.total);
    merge_blocks(a, fold.out, problem, first + problem, last - first + 1, Math::kLift);
  }
}

}  // namespace tactic::cuda
