// What a selection kernel does otherwise than a kernel that attends as well: asks for the index in one trip, and has warps write
// down their chosen columns as lists, so that no lane idles and heavy lists go round all warps. Included by .cu files only.
#pragma once

#include "select/cuda_stages.h"

namespace tactic::cuda {

// What scoring reads of the index besides centroids is asked for all at once, so that it costs one trip to memory; scales and
// spreads wait where the masses will be, of many columns where they stay.
template <bool kMany, typename Shape>
__device__ __forceinline__ void ask_for_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
  float* spread = kMany ? shared.spread : shared.mass;
  float* scale = kMany ? shared.scale : shared.mass + task.columns;
  const std::int64_t at = static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first;
  const std::int32_t* begin = task.index.begin + static_cast<std::int64_t>(piece.slot) * (task.index.capacity + 64) + piece.first;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int c = 4 * thread; c <= piece.count; c += 4 * static_cast<int>(blockDim.x)) {  // columns are readable in fours
    copy_async(shared.begin + c, begin + c);
    if (c == piece.count) break;
    copy_async(spread + c, task.index.spread + at + c);
    if (Shape::kInt8) copy_async(scale + c, task.index.centroid_scale + at + c);
  }
}
__device__ __forceinline__ const std::int32_t* part_ends(const SelectTask& task, const Piece& piece) {
  return task.index.part_begin + static_cast<std::int64_t>(piece.slot) * (task.index.part_capacity + 1) + 1;
}

// Once all threads' copies have come.
template <typename Shape>
__device__ __forceinline__ void take_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
#pragma unroll 1
  for (int c = static_cast<int>(threadIdx.x); c < piece.count; c += static_cast<int>(blockDim.x)) {
    const auto tokens = static_cast<float>(shared.begin[c + 1] - shared.begin[c]);
    shared.column[c] = {Shape::kInt8 ? shared.mass[task.columns + c] : 1.0f, shared.mass[c], log2_fast(tokens), tokens};
  }
}

// Columns that a warp has written down, in ascending order of its tiles, in shared memory.
struct ColumnList {
  std::uint16_t* at;
  int stride;  // from 32 columns to the next 32: other warps' lie between
  int count = 0;

  __device__ ColumnList(std::uint16_t* lists, const Piece& piece) : at(lists + piece.warp * 32), stride(piece.warps * 32) {}
  __device__ explicit ColumnList(std::uint16_t* of_warp) : at(of_warp), stride(32) {}
  __device__ __forceinline__ int get(int i) const { return at[i / 32 * stride + i % 32]; }
  // Column c of every lane that says so. All lanes; entries behind the list's end may still be read by who calls.
  __device__ __forceinline__ void add(int lane, bool keep, int c) {
    const std::uint32_t which = __ballot_sync(~0u, keep);
    const int i = count + __popc(which & ((1u << lane) - 1));
    if (keep) at[i / 32 * stride + i % 32] = static_cast<std::uint16_t>(c);
    count += __popc(which);
  }
};

// The warp's columns but those that are dropped at a glance: the sum of a column's squared shares bounds its loss and what its
// mean V is worth, whatever the spread. What is left is little more than what is chosen.
template <typename Shape>
__device__ __forceinline__ void find_bright(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                            const float* total, int pairs, ColumnList& bright) {
  const float least = 0.98f * fminf(task.loss_per_row, task.represented_price);  // some slack for rounding
  float minus[Shape::kGroup];                                                    // twice the totals
#pragma unroll
  for (int g = 0; g < Shape::kGroup; ++g) minus[g] = -2 * total[g];
  int c = column_of_pair(piece, 0, piece.lane);
  const float* mass = shared.mass + c * Shape::kGroup;
#pragma unroll 2
  for (int pair = 0; pair < pairs; ++pair) {
    float squares = 0;
#pragma unroll
    for (int g = 0; g < Shape::kGroup && c < piece.count; g += 4) {
      const float4 of = *reinterpret_cast<const float4*>(mass + g);
      squares += (exp2_fast(fmaf(2, of.x, minus[g])) + exp2_fast(fmaf(2, of.y, minus[g + 1]))) +
                 (exp2_fast(fmaf(2, of.z, minus[g + 2])) + exp2_fast(fmaf(2, of.w, minus[g + 3])));
    }
    bright.add(piece.lane, c < piece.count && !(squares < least), c);
    c += 2 * kTileRows * piece.warps;
    mass += 2 * kTileRows * piece.warps * Shape::kGroup;
  }
}

// What a warp has chosen of its columns; [columns + 32 kMostWarps] each.
struct ChosenOfWarp {
  ColumnList attended, represented;
};
constexpr std::size_t column_lists_bytes(int columns) { return 2 * (static_cast<std::size_t>(columns) + 32 * kMostWarps) * 2; }

// judge_columns() with lists instead of words. kMany: worth a glance at all before.
template <bool kMany, typename Shape>
__device__ __forceinline__ ChosenOfWarp judge_to_lists(const SelectTask& task, const Piece& piece,
                                                       const SelectShared<Shape>& shared, std::uint16_t* memory,
                                                       const float* variances, float joined, int pairs) {
  const int member = piece.lane % Shape::kGroup;
  float* total = shared.total + piece.warp * Shape::kGroup;
  if (piece.lane < Shape::kGroup) total[member] = member < task.group && isfinite(joined) ? joined : -2 * kLowest;
  __syncwarp();
  std::uint16_t* second = memory + task.columns + 32 * kMostWarps;
  const auto list = [&](std::uint16_t* lists) {
    return kMany ? ColumnList(lists + piece.warp * task.columns_of_warp) : ColumnList(lists, piece);
  };
  ChosenOfWarp chosen{list(memory), list(second)};
  ColumnList bright = list(memory);  // the attended ones take the places of those that are judged already
  if constexpr (kMany) {
    find_bright(task, piece, shared, total, pairs, bright);
    __syncwarp();
  }
  const int rounds = kMany ? (bright.count + 31) / 32 : pairs;
  int tokens = 0;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    int c = column_of_pair(piece, round, piece.lane);
    if constexpr (kMany) {
      c = 32 * round + piece.lane < bright.count ? bright.get(32 * round + piece.lane) : piece.count;
      __syncwarp();  // attended ones are written there next
    }
    bool attended, represented;
    tokens += judge_column<kMany>(task, piece, shared, variances, total, c < piece.count ? c : -1, attended, represented);
    chosen.attended.add(piece.lane, attended, c);
    chosen.represented.add(piece.lane, represented, c);
  }
  tokens = __reduce_add_sync(~0u, tokens);
  if (piece.lane == 0)
    shared.count[piece.warp] = make_int2(tokens, chosen.attended.count + chosen.represented.count * kOneRepresented);
  return chosen;
}

// A warp's attended columns to the block's, from number `number` on; their tokens' places in the list begin at `at`.
template <typename Shape>
__device__ __forceinline__ void list_attended(const Piece& piece, const SelectShared<Shape>& shared, const ColumnList& attended,
                                              const ChosenColumns& chosen, int number, int at) {
#pragma unroll 1
  for (int i = piece.lane; i - piece.lane < attended.count; i += 32) {
    const int c = i < attended.count ? attended.get(i) : -1;
    const int begin = c < 0 ? 0 : shared.begin[c], size = c < 0 ? 0 : shared.begin[c + 1] - begin;
    int place = size;  // inclusive scan over the lanes
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, place, o);
      if (piece.lane >= o) place += other;
    }
    if (c >= 0) chosen.set(number + i, at + place - size, begin);
    at += __shfl_sync(~0u, place, 31);
  }
}

// Tokens of a warp's attended columns to the list from place `at` on, half a warp a column; meanwhile() is done once while they
// are on their way.
template <typename Shape, typename Meanwhile>
__device__ __forceinline__ void copy_attended(const Piece& piece, const SelectShared<Shape>& shared, const ColumnList& attended,
                                              int at, const std::int32_t* from, std::int32_t* to, const Meanwhile& meanwhile) {
  constexpr int kRounds = 4, kEach = 4;  // columns of half a warp, tokens of a lane, on their way together
  const int lane = piece.lane % 16, half = piece.lane / 16;
  int begin = 0, size = 0, place = 0;  // of this lane's column
  int next = 0;
#pragma unroll 1
  do {
    if (next % 32 == 0) {
      const int c = next + piece.lane < attended.count ? attended.get(next + piece.lane) : -1;
      begin = c < 0 ? 0 : shared.begin[c];
      size = c < 0 ? 0 : shared.begin[c + 1] - begin;
      place = size;  // inclusive scan over the lanes
#pragma unroll
      for (int o = 1; o < 32; o *= 2) {
        const int other = __shfl_up_sync(~0u, place, o);
        if (piece.lane >= o) place += other;
      }
      place += at - size;
      at = __shfl_sync(~0u, place + size, 31);
    }
    int left[kRounds], source[kRounds], target[kRounds], token[kRounds][kEach];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int column = (next + 2 * r + half) % 32;
      source[r] = __shfl_sync(~0u, begin, column) + lane;
      target[r] = __shfl_sync(~0u, place, column) + lane;
      left[r] = __shfl_sync(~0u, size, column) - lane;
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (16 * k < left[r]) token[r][k] = __ldg(from + source[r] + 16 * k);
    }
    if (next == 0) meanwhile();
    bool more = false;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (16 * k < left[r]) to[target[r] + 16 * k] = token[r][k];
      more = more || left[r] > 16 * kEach;
    }
    if (__any_sync(~0u, more)) [[unlikely]] {
#pragma unroll 1
      for (int r = 0; r < kRounds; ++r) {
        const int column = (next + 2 * r + half) % 32;
        const int out_of = __shfl_sync(~0u, begin, column), into = __shfl_sync(~0u, place, column);
        const int last = __shfl_sync(~0u, size, column);
#pragma unroll 1
        for (int k = 16 * kEach + lane; k < last; k += 16) to[into + k] = __ldg(from + out_of + k);
      }
    }
    next += 2 * kRounds;
  } while (next < attended.count);
}

// Tokens of the block's attended columns to the list, half a warp a column, so that heavy columns and lists go round all warps.
__device__ __forceinline__ void copy_tokens(const Piece& piece, const ChosenColumns& chosen, int columns, int tokens,
                                            const std::int32_t* from, std::int32_t* to) {
  constexpr int kRounds = 2, kEach = 4;  // columns of half a warp, tokens of a lane, on their way together
  const int lane = piece.lane % 16, stride = 2 * piece.warps;
#pragma unroll 1
  for (int first = 2 * piece.warp + piece.lane / 16; first < columns; first += kRounds * stride) {
    int place[kRounds], left[kRounds], token[kRounds][kEach];
    const std::int32_t* source[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int i = first + r * stride;
      left[r] = 0;
      if (i >= columns) continue;
      place[r] = chosen.places[i] + lane;
      left[r] = (i + 1 < columns ? chosen.places[i + 1] : tokens) - place[r];
      source[r] = from + chosen.sources[i] + place[r];
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (16 * k < left[r]) token[r][k] = __ldg(source[r] + 16 * k);
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (16 * k < left[r]) to[place[r] + 16 * k] = token[r][k];
#pragma unroll 1
      for (int k = 16 * kEach; k < left[r]; k += 16) to[place[r] + k] = __ldg(source[r] + k);
    }
  }
}

}  // namespace tactic::cuda
