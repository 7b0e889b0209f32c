// The way from the warps' results to the output: folded in a block, sent in shares to the blocks of the thread-block cluster,
// each of which merges and writes its share of the output rows. In the order of warps and blocks: the same bits every time.
#pragma once

#include "decode/cuda_fused_memory.cuh"

namespace tactic::cuda {

// Quads of the output that this block merges.
__device__ __forceinline__ int own_share(const FusedTask& task, const Piece& piece, int items) {
  return min(max(items - piece.rank * task.share, 0), task.share);
}

// One thread, before the first word is sent: what all blocks send to this one.
template <typename Shape>
__device__ __forceinline__ void expect_parts(const FusedTask& task, const Piece& piece, const FusedShared<Shape>& shared) {
  const int own = own_share(task, piece, task.attend.group * Shape::kQuads);
  expect_bytes(shared.merged, static_cast<std::uint32_t>(piece.pieces * (own * 16 + task.attend.group * 8)));
}

// Folds the warps' results, [heads, dim + 4] in their stages, and sends every block its share. A thread a quad.
template <typename Shape>
__device__ __forceinline__ void send_parts(const FusedTask& task, const Piece& piece, const FusedShared<Shape>& shared) {
  constexpr int kQuads = Shape::kQuads, kStride = 4 * kQuads + 4;
  const int item = static_cast<int>(threadIdx.x), head = item / kQuads, quad = item % kQuads;
  if (head >= task.attend.group) return;
  float top = -INFINITY;
#pragma unroll
  for (int w = 0; w < kFusedWarps; ++w) top = fmaxf(top, shared.maximum[w][head]);
  float4 x = make_float4(0, 0, 0, 0);
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kFusedWarps; ++w) {
    const float weight = weight_of(shared.maximum[w][head], top);
    const auto* out = reinterpret_cast<const float*>(shared.stages + w * Shape::kStages * Shape::kStageBytes);
    sum += shared.sum[w][head] * weight;
    add_scaled(x, *reinterpret_cast<const float4*>(out + head * kStride + 4 * quad), weight);
  }
  const int to = quotient(item, task.by_share);
  send_to_block(reinterpret_cast<float*>(shared.parts + piece.rank * task.share + item - to * task.share), shared.merged, to, x);
  if (quad < piece.pieces)
    send_to_block(reinterpret_cast<float*>(shared.part_sums + piece.rank * Shape::Select::kGroup + head), shared.merged, quad,
                  make_float2(top, sum));
}

// Merges this block's share: a warp takes 8 quads at a time, four lanes a quad, each a quarter of the blocks.
template <typename Shape>
__device__ __forceinline__ void merge_parts(const FusedTask& task, const Piece& piece, const FusedShared<Shape>& shared) {
  constexpr int kGroup = Shape::Select::kGroup;
  const int own = own_share(task, piece, task.attend.group * Shape::kQuads);
  if (piece.warp > 0 && 8 * piece.warp >= own) return;
  wait_for_bytes(shared.merged);  // all blocks: nobody sends to a block that has ended
#pragma unroll 1
  for (int first = 8 * piece.warp; first < own; first += 8 * kFusedWarps) {
    const int i = min(first + piece.lane % 8, own - 1), item = piece.rank * task.share + i;
    const int head = item / Shape::kQuads, quad = item % Shape::kQuads;
    float top = -INFINITY;
#pragma unroll
    for (int k = 0; k < kMostFusedPieces / 4; ++k) {
      const int part = piece.lane / 8 + 4 * k;
      if (part < piece.pieces) top = fmaxf(top, shared.part_sums[part * kGroup + head].x);
    }
    top = fmaxf(top, __shfl_xor_sync(kWarp, top, 8));
    top = fmaxf(top, __shfl_xor_sync(kWarp, top, 16));
    float4 x = make_float4(0, 0, 0, 0);
    HeadSum total{top, 0};
#pragma unroll
    for (int k = 0; k < kMostFusedPieces / 4; ++k) {
      const int part = piece.lane / 8 + 4 * k;
      if (part < piece.pieces)
        add_part(x, total, shared.parts[part * task.share + i], shared.part_sums[part * kGroup + head], top);
    }
#pragma unroll
    for (int o = 8; o < 32; o *= 2) {
      x.x += __shfl_xor_sync(kWarp, x.x, o);
      x.y += __shfl_xor_sync(kWarp, x.y, o);
      x.z += __shfl_xor_sync(kWarp, x.z, o);
      x.w += __shfl_xor_sync(kWarp, x.w, o);
      total.sum += __shfl_xor_sync(kWarp, total.sum, o);
    }
    if (piece.lane < min(own - first, 8)) finish(task.attend, piece.slot, head, 4 * quad, x, total, Shape::Math::kLift);
  }
}

}  // namespace tactic::cuda
