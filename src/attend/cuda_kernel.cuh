// The attention kernel: a fixed grid in which every thread block weighs an equal stretch of all problems' tiles.
//
// Computes softmax(q K' scale) V over the listed, always-attended and represented entries of every (sequence, KV head). Bytes:
// the K and V rows once for the G heads, v_dim + 4 + 4 G a represented cluster, 2 * 4 G (v_dim + 2) for every block that shares a
// problem with a later one.
#pragma once

#include "attend/cuda_launch.h"
#include "attend/cuda_merge.cuh"
#include "core/cuda.h"

namespace tactic::cuda {

template <typename Math, int kStages>
__global__ void __launch_bounds__(32 * Math::kWarps, 1) attend_kernel(const __grid_constant__ AttendArgs a) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float maximum[kMaxWarps][8], sum[kMaxWarps][8];
  __shared__ int place[kMaxWarps];
  __shared__ HeadSum own_sum[kMaxGroup];
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / 32;
  const int warp = __shfl_sync(kWarp, thread / 32, 0);  // tells the compiler that it is the same in all lanes
  unsigned char* math_memory = memory + warps * a.ring_bytes;
  auto* own = reinterpret_cast<float*>(math_memory + warps * a.math_bytes);
  const WorkTables tables = place_tables(a, own + a.group * a.v_dim);
  const int* first_tile = tables.first_tile;
  const Fold fold{memory, a.ring_bytes, &place, maximum, sum, own, own_sum};

  let_successor_start();
  // `select` tells what it has chosen before it has written that; q, K, V and lengths are there, as it has waited for them.
  const bool told = a.lists.early_counts != nullptr;
  if (!told) wait_for_predecessor();
  const Stretch stretch = divide(a, tables);
  if (stretch.begin >= stretch.end) {
    write_empty(a, first_tile);
    if (told) wait_for_predecessor();
    return;
  }

  Math math(a, math_memory + warp * a.math_bytes);
  Ring<kStages> ring(a, memory + warp * a.ring_bytes, tables, stretch, warp, warps);
  int next = ring.next(), limit = 0;  // the warp's next tile; end of the problem's part of the stretch
  int problem = stretch.problem - 1, stage = 0;
  int to_merge = -1;  // the problem that began in an earlier block and ends in this one
  // One loop for filling the ring, arithmetic and change of problem, so that its parts lie in the code once: a block runs few
  // rounds, and fetching instructions for the first time is what they would wait for.
#pragma unroll 1
  for (int step = 1 - Ring<kStages>::kLead - kStages;; ++step) {
    if (step >= 0) {
      bool done = false;
#pragma unroll 1
      while (next >= limit) {  // all of the warp's tiles of this problem are weighed, if there was one
        if (limit > 0) {
          const int begin = first_tile[problem], end = first_tile[problem + 1];
          const Part part = end > stretch.end ? Part::published : begin < stretch.begin ? Part::kept : Part::complete;
          if (part == Part::kept) to_merge = problem;
#pragma unroll
          for (int tile = 0; tile < Math::kTiles; ++tile) {
            const int heads = min(a.group - 8 * tile, 8);
            if (heads <= 0) break;
            if (thread % 32 == 0) place[warp] = ring.offset(stage);
            auto* out = reinterpret_cast<float*>(memory + warp * a.ring_bytes + ring.offset(stage));
            math.end(tile, heads, out, math.v_dim() + 4, maximum[warp], sum[warp]);
            __syncthreads();
            fold_warps(a, fold, problem, 8 * tile, heads, part, math.v_dim(), Math::kLift);
            __syncthreads();  // what the memory held has been read
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
    }
    ring.refill(math, stage, step == -kStages);
    if (step > -kStages) stage = stage + 1 == kStages ? 0 : stage + 1;
    if (step < 0) continue;
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
  if (to_merge >= 0) {
    const int first = first_block(stretch, first_tile, to_merge);
    merge_blocks(a, fold, memory, to_merge, first + to_merge, static_cast<int>(blockIdx.x) - first, math.v_dim(), Math::kLift);
  }
  write_empty(a, first_tile);
  if (told) wait_for_predecessor();  // this kernel has not ended before `select` has
}

template <typename Math, int kStages>
AttendKernel attend_kernel_of() {
  return {attend_kernel<Math, kStages>, kStages, Math::kWarps, Ring<kStages>::kEntryBytes};
}

}  // namespace tactic::cuda
