// From masses to lists: the choice by expected loss, or the export of what a choice elsewhere needs. A warp
// judges and lists the columns that it has scored. Included by .cu files only.
#pragma once

#include "select/cuda_lists.h"
#include "select/cuda_score.h"

namespace tactic::cuda {

// log cosh s, base 2; s^2 the variance of a column's logits; with it the mean V weighs as its tokens do.
__device__ __forceinline__ float log2_cosh(float variance) {
  float s;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(variance));
  s *= kLog2E;
  return s + log2_fast(fmaf(0.5f, exp2_fast(-2 * s), 0.5f));  // s + log((1 + exp(-2 s)) / 2)
}

// What judging reads of a column.
template <bool kMany, typename Shape>
__device__ __forceinline__ Column column_at(const SelectShared<Shape>& shared, int c) {
  if constexpr (!kMany) return shared.column[c];
  const auto tokens = static_cast<float>(shared.begin[c + 1] - shared.begin[c]);
  return {shared.scale[c], shared.spread[c], log2_fast(tokens), tokens};
}

// joined: log2 of the mass of head lane % kGroup.
template <bool kMany, typename Shape>
__device__ __forceinline__ void export_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                               const float* variances, float joined) {
  float* total = shared.query;  // of the heads; scoring has left it
  __syncthreads();
  if (piece.warp == 0 && piece.lane < Shape::kGroup) total[piece.lane] = joined;
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < piece.count * task.group; i += static_cast<int>(blockDim.x)) {
    const int g = i / piece.count, c = i - g * piece.count;
    const Column column = column_at<kMany>(shared, c);
    const int part = part_of(shared.part_end, piece.parts, piece.first + c);
    const float slope = task.query.softcap > 0 ? shared.slope[c * Shape::kGroup + g] : 1.0f;
    const float variance = variances[part * Shape::kGroup + g] * column.spread * slope;
    const float mass = shared.mass[c * Shape::kGroup + g];
    const float centroid = mass - variance * (0.5f * kLog2E);  // log of size times exp(q . centroid)
    const std::int64_t at = (static_cast<std::int64_t>(piece.slot) * task.group + g) * task.index.capacity + piece.first + c;
    if (task.exported.logit != nullptr) task.exported.logit[at] = centroid - column.log_size;
    task.exported.share[at] = mass - total[g];
    if (task.exported.weight != nullptr) task.exported.weight[at] = centroid + log2_cosh(variance);
  }
}

constexpr int kOneRepresented = 1 << 16;  // beside counts of chosen columns

// Judging and listing take a warp's scored tiles in pairs, a lane a column. Column of the warp's pair number `pair`.
__device__ __forceinline__ int column_of_pair(const Piece& piece, int pair, int lane) {
  return (piece.warp + (2 * pair + lane / kTileRows) * piece.warps) * kTileRows + lane % kTileRows;
}
__device__ __forceinline__ int pairs_of_warp(const Piece& piece, int tiles) {
  const int round = 2 * piece.warps;
  return (max(tiles - piece.warp, 0) + round - 1) / round;
}

// What becomes of a lane's column c (negative: none), log weights in place of its masses. Returns the number of its tokens if it
// is attended; L2 fetches their numbers meanwhile. total: [kGroup] log2 of the heads' mass.
template <bool kMany = false, typename Shape>
__device__ __forceinline__ int judge_column(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                            const float* variances, const float* total, int c, bool& attended,
                                            bool& represented) {
  constexpr float kRippleExponent = 5.0f;  // representation_ripple()
  constexpr float kRippleFloor = 0.01f;
  const bool ripples = task.represent && task.spread;
  attended = represented = false;
  if (c >= 0) {
    const Column column = column_at<kMany>(shared, c);
    if (piece.parts > 1) variances += part_of(shared.part_end, piece.parts, piece.first + c) * Shape::kGroup;
    float per_size;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(per_size) : "f"(column.size));
    float loss = 0, squares = 0;
#pragma unroll 1
    for (int g = 0; g < Shape::kGroup; g += 4) {
      float4& weights = *reinterpret_cast<float4*>(shared.mass + c * Shape::kGroup + g);
      const float4 mass = weights, unit = *reinterpret_cast<const float4*>(variances + g),
                   all = *reinterpret_cast<const float4*>(total + g);
      const float x[4] = {mass.x, mass.y, mass.z, mass.w}, t[4] = {all.x, all.y, all.z, all.w};
      float variance[4] = {unit.x, unit.y, unit.z, unit.w}, weight[4];
      if (task.query.softcap > 0) {
#pragma unroll
        for (int k = 0; k < 4; ++k) variance[k] *= shared.slope[c * Shape::kGroup + g + k];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float v = variance[k] * column.spread;
        const float log_share = x[k] - t[k];
        const float scatter = exp2_fast(fminf(v, kRippleExponent) * kLog2E) - 1;
        const float ripple = ripples ? fminf(1.0f, fmaf(scatter, per_size, kRippleFloor)) : 1.0f;
        loss += fmaxf(exp2_fast(2 * log_share) * ripple, 0.0f);  // an unsound head's may be NaN
        const float log_weight = fmaf(v, -0.5f * kLog2E, log_share) + log2_cosh(v);
        squares += fmaxf(exp2_fast(2 * log_weight), 0.0f);
        weight[k] = (log_weight + t[k]) * kLn2;
      }
      weights = make_float4(weight[0], weight[1], weight[2], weight[3]);
    }
    attended = loss > task.loss_per_row * column.size;
    represented = !attended && squares > task.represented_price;
  }
  if (!attended) return 0;
  const int begin = shared.begin[c], size = shared.begin[c + 1] - begin;
  const std::int32_t* tokens = task.index.tokens + static_cast<std::int64_t>(piece.slot) * task.index.token_capacity + begin;
  prefetch_l2(tokens);
  prefetch_l2(tokens + size - 1);
  return size;
}

// What becomes of a pair's columns: its words, counts of this lane's attended tokens and of the warp's columns.
template <typename Shape>
__device__ __forceinline__ void judge_pair(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                           const float* variances, const float* total, int pair, int2& counts) {
  const int c = column_of_pair(piece, pair, piece.lane);
  bool attended, represented;
  counts.x += judge_column(task, piece, shared, variances, total, c < piece.count ? c : -1, attended, represented);
  const uint2 words = make_uint2(__ballot_sync(~0u, attended), __ballot_sync(~0u, represented));
  counts.y += __popc(words.x) + __popc(words.y) * kOneRepresented;
  if (piece.lane == 0) shared.words[pair * piece.warps + piece.warp] = words;
}

// A warp's places in the lists of its piece.
struct Places {
  int tokens, chosen, represented;
};

// A represented column to place `at` of the lists.
template <typename Shape>
__device__ __forceinline__ void list_represented(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                                 std::int64_t at, int c) {
  task.lists.represented[at] = piece.first + c;
  float* to = task.lists.log_weight + at * task.group;
  const float* weight = shared.mass + c * Shape::kGroup;
  if (task.group % 4 == 0) {
#pragma unroll
    for (int g = 0; g < Shape::kGroup; g += 4)
      if (g < task.group) *reinterpret_cast<float4*>(to + g) = *reinterpret_cast<const float4*>(weight + g);
  } else {
#pragma unroll 1
    for (int g = 0; g < task.group; ++g) to[g] = weight[g];
  }
}

// A judged pair's attended columns to `chosen`, its represented ones to represent(place among the piece's, column).
template <typename Shape, typename Chosen, typename Represent>
__device__ __forceinline__ void list_pair(const Piece& piece, const SelectShared<Shape>& shared, const Chosen& chosen, int pair,
                                          Places& next, const Represent& represent) {
  const uint2 words = shared.words[pair * piece.warps + piece.warp];
  const int c = column_of_pair(piece, pair, piece.lane);
  const std::uint32_t earlier = (1u << piece.lane) - 1;
  if ((words.y >> piece.lane & 1) != 0) represent(next.represented + __popc(words.y & earlier), c);
  next.represented += __popc(words.y);
  if (words.x == 0) return;
  const bool attended = (words.x >> piece.lane & 1) != 0;
  const int begin = attended ? shared.begin[c] : 0, size = attended ? shared.begin[c + 1] - begin : 0;
  int place = size;  // inclusive scan over the lanes
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const int other = __shfl_up_sync(~0u, place, o);
    if (piece.lane >= o) place += other;
  }
  if (attended) chosen.set(next.chosen + __popc(words.x & earlier), next.tokens + place - size, begin);
  next.tokens += __shfl_sync(~0u, place, 31);
  next.chosen += __popc(words.x);
}

}  // namespace tactic::cuda
