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
  float s;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(variance));
  s *= kLog2E;
  return s + log2_fast(fmaf(0.5f, exp2_fast(-2 * s), 0.5f));  // s + log((1 + exp(-2 s)) / 2)
}

// Half the variance of a column's logits, natural. half: [kGroup] of its part.
template <typename Shape>
__device__ __forceinline__ float column_half(const SelectTask& task, const SelectShared<Shape>& shared, const float* half, int c,
                                             int member) {
  const float of_part = half[member] * shared.spread[c];
  if (task.query.softcap <= 0) return of_part;
  return capped_variance(task, of_part, shared.logit[c * Shape::kGroup + member]);
}

template <typename Shape>
__device__ void export_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
  const int group = task.query.shape.group();
  for (int c = static_cast<int>(threadIdx.x); c < piece.count; c += static_cast<int>(blockDim.x)) {
    const float* half = shared.half + part_of(shared.part_end, piece.parts, piece.first + c) * Shape::kGroup;
#pragma unroll 1
    for (int g = 0; g < group; ++g) {
      const float variance = column_half(task, shared, half, c, g);
      const float mass = shared.mass[c * Shape::kGroup + g];
      const float centroid = mass - variance * kLog2E;  // log of size times exp(q . centroid)
      const std::int64_t at = (static_cast<std::int64_t>(piece.slot) * group + g) * task.index.capacity + piece.first + c;
      task.exported.logit[at] = centroid - shared.log_size[c];
      task.exported.share[at] = mass - shared.total[g];
      task.exported.weight[at] = centroid + log2_cosh(2 * variance);
    }
  }
}

// Counts of one lane's columns, then of its warp.
struct Counts {
  int tokens = 0, chosen = 0, represented = 0;
  __device__ __forceinline__ void of_warp(int lane, int warp, std::int32_t* count) {
    tokens = __reduce_add_sync(~0u, tokens);
    chosen = __reduce_add_sync(~0u, chosen);
    represented = __reduce_add_sync(~0u, represented);
    if (lane != 0) return;
    count[warp] = tokens;
    count[32 + warp] = chosen;
    count[64 + warp] = represented;
  }
};

// Columns are dealt to warps in contiguous stretches of this many: a multiple of 32.
__device__ __forceinline__ int columns_of_warp(int count, int warps) {
  const int share = (count + warps - 1) / warps;
  return (share + 31) / 32 * 32;
}

// The columns that may be attended or represented, this warp's: numbers to candidates from `from` on. Returns how many. Neither
// the loss of representing a column nor the weight of its mean V exceeds its share: most columns end here.
template <typename Shape>
__device__ __forceinline__ int find_candidates(const Piece& piece, const SelectShared<Shape>& shared,
                                               const float (&total)[Shape::kGroup], float least, int from, int to,
                                               std::int32_t* candidates) {
  constexpr int kGroup = Shape::kGroup;
  int found = from;
#pragma unroll 2
  for (int first = from; first < to; first += 32) {
    const int c = first + piece.lane;
    float squares = 0;
    if (c < to) {
#pragma unroll
      for (int g = 0; g < kGroup; g += 4) {
        const float4 mass = *reinterpret_cast<const float4*>(shared.mass + c * kGroup + g);
        squares += exp2_fast(2 * (mass.x - total[g])) + exp2_fast(2 * (mass.y - total[g + 1])) +
                   exp2_fast(2 * (mass.z - total[g + 2])) + exp2_fast(2 * (mass.w - total[g + 3]));
      }
    }
    const bool wanted = squares > least;
    const std::uint32_t all = __ballot_sync(~0u, wanted);
    if (wanted) candidates[found + __popc(all & ((1u << piece.lane) - 1))] = c;
    found += __popc(all);
  }
  __syncwarp();
  return found - from;
}

// What becomes of the candidates of this warp: codes, log weights of the represented into `mass`, counts of the warp into
// `count`. L2 fetches the token numbers of the attended ones meanwhile.
template <typename Shape>
__device__ __forceinline__ void judge_candidates(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                                 const float (&total)[Shape::kGroup], int from, int to,
                                                 const std::int32_t* candidates) {
  constexpr float kRippleExponent = 5.0f;  // representation_ripple()
  constexpr float kRippleFloor = 0.01f;
  constexpr int kGroup = Shape::kGroup;
  const float price = task.loss_per_row;
  const float tail_price = task.represented_price;
  const bool ripples = task.represent && task.spread;
  const std::int32_t* tokens = task.index.tokens + static_cast<std::int64_t>(piece.slot) * task.index.token_capacity;
  Counts counts;
#pragma unroll 1
  for (int i = from + piece.lane; i < to; i += 32) {
    const int c = candidates[i];
    const float* half = shared.half;
    if (piece.parts > 1) half += part_of(shared.part_end, piece.parts, piece.first + c) * kGroup;
    const int begin = shared.begin[c];
    const int size = shared.begin[c + 1] - begin;
    const float per_size = __fdividef(1.0f, static_cast<float>(size));
    float variance[kGroup];
    float loss = 0;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      variance[g] = column_half(task, shared, half, c, g);
      const float share = exp2_fast(2 * (shared.mass[c * kGroup + g] - total[g]));  // squared
      const float scatter = exp2_fast(fminf(2 * variance[g], kRippleExponent) * kLog2E) - 1;
      const float ripple = ripples ? fminf(1.0f, fmaf(scatter, per_size, kRippleFloor)) : 1.0f;
      loss += share > 0 ? share * ripple : 0.0f;  // an unsound head's ripple may be NaN
    }
    std::uint8_t code = kDropped;
    if (loss > price * static_cast<float>(size)) {
      code = kAttended;
      counts.tokens += size;
      ++counts.chosen;
      prefetch_l2(tokens + begin);
      prefetch_l2(tokens + begin + size - 1);
    } else if (task.represent) {
      float squares = 0;
      float weight[kGroup];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        weight[g] = shared.mass[c * kGroup + g] - variance[g] * kLog2E + log2_cosh(2 * variance[g]);
        const float square = exp2_fast(2 * (weight[g] - total[g]));
        squares += square > 0 ? square : 0.0f;
      }
      if (squares > tail_price) {
        code = kRepresented;
        ++counts.represented;
#pragma unroll
        for (int g = 0; g < kGroup; ++g) shared.mass[c * kGroup + g] = weight[g] * kLn2;
      }
    }
    shared.code[i] = code;
  }
  counts.of_warp(piece.lane, piece.warp, shared.count);
}

// The choice of this warp's columns; returns the end of its candidates, which begin at `from`.
template <typename Shape>
__device__ __forceinline__ int choose_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                              int from, int to, std::int32_t* candidates) {
  float total[Shape::kGroup];
#pragma unroll
  for (int g = 0; g < Shape::kGroup; ++g) {
    const float v = shared.total[g];
    // An unsound head and the padding of the group have no say: their shares vanish.
    total[g] = g < task.query.shape.group() && isfinite(v) ? v : -2 * kLowest;
  }
  const float least = task.represent ? task.represented_price : task.loss_per_row;
  const int end = from + find_candidates(piece, shared, total, least, from, to, candidates);
  judge_candidates(task, piece, shared, total, from, end, candidates);
  return end;
}

}  // namespace tactic::cuda
