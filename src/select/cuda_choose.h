// From masses to codes: the normaliser over all pieces and the choice by expected loss. Included by .cu files only.
#pragma once

#include "select/cuda_lists.h"
#include "select/cuda_score.h"

namespace tactic::cuda {

// Maximum and sum of this warp's lanes to all blocks of the (sequence, head).
template <typename Shape>
__device__ void share_sums(const Piece& piece, const SelectShared<Shape>& shared,
                           const RunningSum (&sums)[Shape::kQueryTiles][2]) {
  float* own = shared.sums + (piece.rank * piece.warps + piece.warp) * Shape::kGroup * 2;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
    float4 both;
    float* at = &both.x;  // maximum, sum of two heads
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float top = sums[i][k].top;
#pragma unroll
      for (int o = 16; o > 1; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
      float sum = sums[i][k].sum * exp2_fast(sums[i][k].top - top);
#pragma unroll
      for (int o = 16; o > 1; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
      at[2 * k] = top;
      at[2 * k + 1] = sum;
    }
    float* place = own + (i * 4 + piece.lane % 2 * 2) * 2;
    if (piece.pieces == 1) {
      if (piece.lane < 2) *reinterpret_cast<float4*>(place) = both;
    } else if (piece.lane / 2 < piece.pieces) {
      store_in_block(place, piece.lane / 2, both);
    }
  }
}

// Warps below kGroup: log-sum-exp base 2 of a head over the sums of all warps of all pieces, into shared.total.
template <typename Shape>
__device__ void join_sums(const Piece& piece, const SelectShared<Shape>& shared) {
  for (int member = piece.warp; member < Shape::kGroup; member += piece.warps) {
    constexpr int kMostEach = kMostPieces * 16 / 32;
    const int entries = piece.pieces * piece.warps;
    float2 own[kMostEach];
    float top = kLowest;
#pragma unroll
    for (int i = 0; i < kMostEach; ++i) {
      const int e = i * 32 + piece.lane;
      own[i] = e < entries ? *reinterpret_cast<const float2*>(shared.sums + (e * Shape::kGroup + member) * 2)
                           : make_float2(kLowest, 0.0f);
      top = fmaxf(top, own[i].x);
    }
#pragma unroll
    for (int o = 16; o > 0; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostEach; ++i) sum += own[i].y * exp2_fast(own[i].x - top);
#pragma unroll
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (piece.lane == 0) shared.total[member] = top + log2_fast(sum);
  }
}

// log cosh s, base 2; s the deviation of a column's logits, s^2 its variance: with it the mean V weighs as its tokens do.
__device__ __forceinline__ float log2_cosh(float variance) {
  const float s = sqrtf(variance) * kLog2E;
  return s + log2_fast(0.5f + 0.5f * exp2_fast(-2 * s));  // s + log((1 + exp(-2 s)) / 2)
}

// A column as one lane sees it: all heads of the group.
template <typename Shape>
struct ColumnLane {
  const SelectTask& task;
  const Piece& piece;
  const SelectShared<Shape>& shared;

  // Half the variance of its logits, natural.
  __device__ float half(int c, int member) const {
    const int part = part_of(shared.part_end, piece.parts, piece.first + c);
    const float of_part = half_variance(task, shared, part, member) * shared.spread[c];
    if (task.query.softcap <= 0) return of_part;
    return capped_variance(task, of_part, shared.logit[c * Shape::kGroup + member]);
  }
  // log2 of the weight of its mean V.
  __device__ float weight(int c, int member, float half_of_column) const {
    return shared.mass[c * Shape::kGroup + member] - half_of_column * kLog2E + log2_cosh(2 * half_of_column);
  }
};

template <typename Shape>
__device__ void export_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
  const int group = task.query.shape.group();
  const ColumnLane<Shape> lane{task, piece, shared};
  for (int c = static_cast<int>(threadIdx.x); c < piece.count; c += static_cast<int>(blockDim.x)) {
    for (int g = 0; g < group; ++g) {
      const float half = lane.half(c, g);
      const float mass = shared.mass[c * Shape::kGroup + g];
      const std::int64_t at = (static_cast<std::int64_t>(piece.slot) * group + g) * task.index.capacity + piece.first + c;
      task.exported.logit[at] = mass - half * kLog2E - shared.log_size[c];
      task.exported.share[at] = mass - shared.total[g];
      task.exported.weight[at] = lane.weight(c, g, half);
    }
  }
}

// The choice of every column into `code`, log weights of the represented into `mass`, counts per warp into `count`.
template <typename Shape>
__device__ void choose_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
  constexpr float kRepresentedRows = 0.27f;  // select/loss.h
  constexpr float kTailShare = 0.25f;        // keep_worthy_tail()
  constexpr float kRippleExponent = 5.0f;    // representation_ripple()
  constexpr float kRippleFloor = 0.01f;
  const ColumnLane<Shape> lane{task, piece, shared};
  const float price = task.loss_per_row;
  const float tail_price = price * (kRepresentedRows * kTailShare);
  const float least = task.represent ? tail_price : price;
  float total[Shape::kGroup];
#pragma unroll
  for (int g = 0; g < Shape::kGroup; ++g) {
    total[g] = shared.total[g];
    // An unsound head and the padding of the group have no say.
    if (g >= task.query.shape.group() || !isfinite(total[g])) total[g] = -2 * kLowest;
  }
  int tokens = 0, chosen = 0, represented = 0;
  for (int c = static_cast<int>(threadIdx.x); c < piece.count; c += static_cast<int>(blockDim.x)) {
    float share[Shape::kGroup];
    float squares = 0;
#pragma unroll
    for (int g = 0; g < Shape::kGroup; g += 4) {
      const float4 mass = *reinterpret_cast<const float4*>(shared.mass + c * Shape::kGroup + g);
      const float* each = &mass.x;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        share[g + k] = exp2_fast(each[k] - total[g + k]);
        squares = fmaf(share[g + k], share[g + k], squares);
      }
    }
    std::uint8_t code = kDropped;
    // Neither the loss of representing a column nor the weight of its mean V exceeds its share: most columns end here.
    if (squares > least) {
      const int size = shared.begin[c + 1] - shared.begin[c];
      const float n = static_cast<float>(size);
      const float per_size = 1.0f / n;
      float loss = 0, weight_squares = 0;
      float weight[Shape::kGroup];
#pragma unroll
      for (int g = 0; g < Shape::kGroup; ++g) {
        if (g >= task.query.shape.group()) break;
        const float half = lane.half(c, g);
        const float scatter = exp2_fast(fminf(2 * half, kRippleExponent) * kLog2E) - 1;
        const float ripple = task.represent && task.spread ? fminf(1.0f, fmaf(scatter, per_size, kRippleFloor)) : 1.0f;
        loss += total[g] < -kLowest ? share[g] * share[g] * ripple : 0.0f;
        weight[g] = lane.weight(c, g, half);
        const float weight_share = total[g] < -kLowest ? exp2_fast(weight[g] - total[g]) : 0.0f;
        weight_squares = fmaf(weight_share, weight_share, weight_squares);
      }
      if (loss > price * n) {
        code = kAttended;
        tokens += size;
        ++chosen;
      } else if (task.represent && weight_squares > tail_price) {
        code = kRepresented;
        ++represented;
#pragma unroll
        for (int g = 0; g < Shape::kGroup; ++g) {
          if (g < task.query.shape.group()) shared.mass[c * Shape::kGroup + g] = weight[g] * kLn2;
        }
      }
    }
    shared.code[c] = code;
  }
  tokens = __reduce_add_sync(~0u, tokens);
  chosen = __reduce_add_sync(~0u, chosen);
  represented = __reduce_add_sync(~0u, represented);
  if (piece.lane == 0) {
    shared.count[piece.warp] = tokens;
    shared.count[32 + piece.warp] = chosen;
    shared.count[64 + piece.warp] = represented;
  }
}

}  // namespace tactic::cuda
