// The softmax normaliser of a (sequence, KV head): sums of lanes, of warps, of all blocks of its thread-block cluster. Included
// by .cu files only.
#pragma once

#include "select/cuda_piece.h"

namespace tactic::cuda {

// Log-sum-exp of values that come one by one, base 2. The reference moves only when a value outgrows it by far: a NaN never
// becomes it, and stays in the sum.
struct RunningSum {
  static constexpr float kSlack = 32;  // 2^32 times the number of values is far from overflow
  float top = kLowest;
  float sum = 0;
  __device__ __forceinline__ void add(float x) {
    const float next = x > top + kSlack ? x : top;
    sum = fmaf(sum, exp2_fast(top - next), exp2_fast(x - next));
    top = next;
  }
};

// Maximum and sum of this warp's lanes to all blocks of the (sequence, head). Nothing waits: the receivers count the bytes.
template <typename Shape>
__device__ __forceinline__ void share_sums(const Piece& piece, const SelectShared<Shape>& shared,
                                           const RunningSum (&sums)[Shape::kQueryTiles][2]) {
  float* own = shared.sums + (piece.rank * piece.warps + piece.warp) * Shape::kGroup * 2;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
    float top[2], sum[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) top[k] = sums[i][k].top;
#pragma unroll
    for (int o = 16; o > 1; o /= 2) {
#pragma unroll
      for (int k = 0; k < 2; ++k) top[k] = fmaxf(top[k], __shfl_xor_sync(~0u, top[k], o));
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) sum[k] = sums[i][k].sum * exp2_fast(sums[i][k].top - top[k]);
#pragma unroll
    for (int o = 16; o > 1; o /= 2) {
#pragma unroll
      for (int k = 0; k < 2; ++k) sum[k] += __shfl_xor_sync(~0u, sum[k], o);
    }
    const float4 both = make_float4(top[0], sum[0], top[1], sum[1]);
    float* place = own + (i * 4 + piece.lane % 2 * 2) * 2;
    if (piece.pieces == 1) {
      if (piece.lane < 2) *reinterpret_cast<float4*>(place) = both;
    } else if (piece.lane / 2 < piece.pieces) {
      send_to_block(place, shared.arrived, piece.lane / 2, both);
    }
  }
}

// Every warp for itself: log2 of the mass of head lane % kGroup over the sums of all warps of all pieces.
template <typename Shape>
__device__ __forceinline__ float join_sums(const Piece& piece, const SelectShared<Shape>& shared) {
  const auto* entry = reinterpret_cast<const float2*>(shared.sums) + piece.lane;
  const int count = piece.pieces * piece.warps * Shape::kGroup;
  float top = kLowest, sum = 0;
#pragma unroll 4
  for (int i = piece.lane; i < count; i += 32) top = fmaxf(top, entry[i - piece.lane].x);
#pragma unroll
  for (int o = Shape::kGroup; o < 32; o *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
#pragma unroll 4
  for (int i = piece.lane; i < count; i += 32) {
    const float2 one = entry[i - piece.lane];
    sum += one.y * exp2_fast(one.x - top);
  }
#pragma unroll
  for (int o = Shape::kGroup; o < 32; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
  return top + log2_fast(sum);
}

}  // namespace tactic::cuda
