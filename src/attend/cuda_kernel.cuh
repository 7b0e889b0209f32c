// The attention kernel: a fixed grid in which every thread block weighs an equal stretch of all problems' tiles.
//
// Computes softmax(q K' scale) V over the listed, always-attended and represented entries of every (sequence, KV head). Bytes:
// the K and V rows once for the G heads, v_dim + 4 + 4 G a represented cluster, 2 * 4 G (v_dim + 2) for every block that shares a
// problem with another.
#pragma once

#include "attend/cuda_merge.cuh"
#include "core/cuda.h"

namespace tactic::cuda {

template <typename Math, int kStages>
__global__ void __launch_bounds__(32 * kMaxWarps, 1) attend_kernel(const __grid_constant__ AttendArgs a) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float maximum[kMaxWarps][8], sum[kMaxWarps][8];
  __shared__ int shared_problem[2];  // the problems that the block shares with others: first and last of its stretch
  __shared__ int shared_slot[2], shared_parts[2];
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
  const int warp = __shfl_sync(kWarp, thread / 32, 0);  // tells the compiler that it is the same in all lanes
  unsigned char* math_memory = memory + warps * a.ring_bytes;
  unsigned char* fold_memory = math_memory + warps * a.math_bytes;
  int* first_tile = reinterpret_cast<int*>(fold_memory + a.fold_bytes);
  const Fold fold{reinterpret_cast<float*>(fold_memory), maximum, sum};

  let_successor_start();
  wait_for_predecessor();
  const Stretch stretch = divide(a, first_tile);
  if (stretch.begin >= stretch.end) {
    write_empty(a, first_tile);
    return;
  }

  Math math(a, math_memory + warp * a.math_bytes);
  Ring<kStages> ring(a, memory + warp * a.ring_bytes, first_tile, stretch, warp, warps);
  int next = ring.next(), limit = 0;  // the warp's next tile; end of the problem's part of the stretch
  int problem = stretch.problem - 1, stage = 0, shared = 0;
  // One loop for filling the ring, arithmetic and change of problem, so that its parts lie in the code once: a block runs few
  // rounds, and fetching instructions for the first time is what they would wait for.
#pragma unroll 1
  for (int step = -Ring<kStages>::kLead - kStages;; ++step) {
    if (step >= 0) {
      bool done = false;
#pragma unroll 1
      while (next >= limit) {  // all of the warp's tiles of this problem are weighed, if there was one
        if (limit > 0) {
          const int begin = first_tile[problem], end = first_tile[problem + 1];
          const bool complete = begin >= stretch.begin && end <= stretch.end;
#pragma unroll
          for (int tile = 0; tile < Math::kTiles; ++tile) {
            const int heads = min(a.group - 8 * tile, 8);
            if (heads <= 0) break;
            __syncthreads();  // what the memory held has been read
            math.end(tile, heads, fold.out + warp * heads * (math.v_dim() + 4), math.v_dim() + 4, maximum[warp], sum[warp]);
            __syncthreads();
            fold_warps(a, fold, problem, 8 * tile, heads, complete, math.v_dim(), Math::kLift);
          }
          if (!complete) {
            if (thread == 0) shared_problem[shared] = problem;
            ++shared;
          }
          done = limit == stretch.end;
          if (done) break;
        }
        do {
          ++problem;
        } while (first_tile[problem + 1] <= max(limit, stretch.begin));
        limit = min(first_tile[problem + 1], stretch.end);
        math.begin(a, problem);
      }
      if (done) break;
      const std::uint32_t at = ring.wait(stage);
      const StageHead head = ring.head(at);
      if (head.represented) {
        math.weigh_clusters(at, head.valid, a.group, a.inverse_v_scale);
      } else {
        math.weigh_tokens(at, head.valid);
      }
      next += warps;
      __syncwarp();
    }
    ring.refill(math, stage);
    if (step >= -kStages) stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  __syncthreads();
  if (thread < shared) {
    const int mine = shared_problem[thread];
    const int first = block_of_tile(stretch, first_tile[mine]);
    const int parts = block_of_tile(stretch, first_tile[mine + 1] - 1) - first + 1;
    shared_slot[thread] = first + mine;
    shared_parts[thread] = arrive_last(a, mine, parts) ? parts : 0;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < shared; ++i) {
    if (shared_parts[i] == 0) continue;
    merge_blocks(a, fold.out, shared_problem[i], shared_slot[i], shared_parts[i], math.v_dim(), Math::kLift);
  }
  write_empty(a, first_tile);
}

}  // namespace tactic::cuda
