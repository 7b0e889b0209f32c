// From codes of columns to the lists that attend/ reads: deterministic places by prefix sums, tokens copied with many loads in
// flight. Included by .cu files only.
#pragma once

#include <cstdint>

#include "core/device.h"

namespace tactic::cuda {

enum ColumnCode : std::uint8_t { kDropped = 0, kAttended = 1, kRepresented = 2 };

// Candidate columns of one stretch of the lists, their codes, and room for the places of the chosen ones. One thread block's;
// each warp has candidates of its own.
struct ColumnSet {
  int slot;
  int stretch;  // slot * lists.pieces + piece
  int first;    // column
  int warp, warps, lane;
  int from, to;                    // this warp's candidates
  const std::int32_t* candidates;  // columns of the set, or null: candidate i is column i
  const std::uint8_t* code;        // of a candidate
  const std::int32_t* begin;       // of a column
  std::int32_t* numbers;           // chosen columns, in order
  std::int32_t* places;            // of their tokens in the stretch

  __device__ __forceinline__ int column(int candidate) const { return candidates != nullptr ? candidates[candidate] : candidate; }
};

// Sum of `count` over the warps before this one, and over all.
struct Offsets {
  int before;
  int all;
  __device__ Offsets(const std::int32_t* count, const ColumnSet& set) {
    const int own = set.lane < set.warps ? count[set.lane] : 0;
    before = __reduce_add_sync(~0u, set.lane < set.warp ? own : 0);
    all = __reduce_add_sync(~0u, own);
  }
};

// Represented columns to the lists, chosen ones to numbers and places, in the order of warps and candidates; a lane a candidate.
// log_weight(column of the set, member) is natural.
template <typename LogWeight>
__device__ __forceinline__ void list_columns(const DeviceLists& lists, const ColumnSet& set, int group, int tokens_before,
                                             int chosen_before, int represented_before, LogWeight&& log_weight) {
  const std::int64_t stretch = static_cast<std::int64_t>(set.stretch) * lists.represented_stride;
  const std::uint32_t earlier = (1u << set.lane) - 1;
#pragma unroll 1
  for (int first = set.from; first < set.to; first += 32) {
    const int candidate = first + set.lane;
    const int code = candidate < set.to ? set.code[candidate] : static_cast<int>(kDropped);
    const int c = candidate < set.to ? set.column(candidate) : 0;
    const std::uint32_t attended = __ballot_sync(~0u, code == kAttended);
    const std::uint32_t represented = __ballot_sync(~0u, code == kRepresented);
    if (code == kRepresented) {
      const std::int64_t at = stretch + represented_before + __popc(represented & earlier);
      lists.represented[at] = set.first + c;
      float* weights = lists.log_weight + at * group;
      if (group == 4) {
        *reinterpret_cast<float4*>(weights) = make_float4(log_weight(c, 0), log_weight(c, 1), log_weight(c, 2), log_weight(c, 3));
      } else {
        for (int g = 0; g < group; ++g) weights[g] = log_weight(c, g);
      }
    }
    represented_before += __popc(represented);
    if (attended == 0) continue;
    const int size = code == kAttended ? set.begin[c + 1] - set.begin[c] : 0;
    int place = size;  // inclusive scan over the lanes
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, place, o);
      if (set.lane >= o) place += other;
    }
    if (size > 0) {
      const int at = chosen_before + __popc(attended & earlier);
      set.numbers[at] = c;
      set.places[at] = tokens_before + place - size;
    }
    tokens_before += __shfl_sync(~0u, place, 31);
    chosen_before += __popc(attended);
  }
}

// Tokens of the chosen columns to the list, a warp a column, two tokens a lane. The stretch begins where its first column's
// tokens do.
__device__ __forceinline__ void list_tokens(const DeviceIndex& index, const DeviceLists& lists, const ColumnSet& set,
                                            int chosen) {
  constexpr int kInFlight = 4;
  const std::int32_t* from = index.tokens + static_cast<std::int64_t>(set.slot) * index.token_capacity + set.lane;
  std::int32_t* to = lists.tokens + static_cast<std::int64_t>(set.slot) * lists.token_stride + set.begin[0] + set.lane;
#pragma unroll 1
  for (int base = set.warp; base < chosen; base += set.warps * kInFlight) {
    int source[kInFlight], place[kInFlight], left[kInFlight];
    std::int32_t token[kInFlight][2];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = base + i * set.warps;
      const bool inside = at < chosen;
      const int c = inside ? set.numbers[at] : 0;
      place[i] = inside ? set.places[at] : 0;
      source[i] = set.begin[c];
      left[i] = inside ? set.begin[c + 1] - source[i] - set.lane : 0;  // > 0: this lane has a token
      if (left[i] > 0) token[i][0] = __ldg(from + source[i]);
      if (left[i] > 32) token[i][1] = __ldg(from + source[i] + 32);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (left[i] > 0) to[place[i]] = token[i][0];
      if (left[i] > 32) to[place[i] + 32] = token[i][1];
#pragma unroll 1
      for (int more = 64; more < left[i]; more += 32) to[place[i] + more] = __ldg(from + source[i] + more);
    }
  }
}

}  // namespace tactic::cuda
