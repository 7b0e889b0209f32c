// From codes of columns to the lists that attend/ reads: deterministic places by prefix sums, tokens copied with many loads in
// flight. Included by .cu files only.
#pragma once

#include <cstdint>

#include "core/device.h"

namespace tactic::cuda {

enum ColumnCode : std::uint8_t { kDropped = 0, kAttended = 1, kRepresented = 2 };

// Columns of one stretch of the lists, their codes, and room for the places of the chosen ones. One thread block's.
struct ColumnSet {
  int slot;
  int stretch;  // slot * lists.pieces + piece
  int first;    // column
  int count;
  int warp, warps, lane;
  const std::uint8_t* code;   // [count]
  const std::int32_t* begin;  // [count + 1]
  std::int32_t* numbers;      // [count] chosen columns, in order
  std::int32_t* places;       // [count] of their tokens in the stretch
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

// Represented columns to the lists, chosen ones to numbers and places. Order: by warp, then by column; a lane a column.
// log_weight(column of the set, member) is natural.
template <typename LogWeight>
__device__ void list_columns(const DeviceLists& lists, const ColumnSet& set, int group, int tokens_before, int chosen_before,
                             int represented_before, LogWeight&& log_weight) {
  const std::int64_t stretch = static_cast<std::int64_t>(set.stretch) * lists.represented_stride;
  const std::uint32_t earlier = (1u << set.lane) - 1;
  for (int first = set.warp * 32; first < set.count; first += set.warps * 32) {
    const int c = first + set.lane;
    const int code = c < set.count ? set.code[c] : static_cast<int>(kDropped);
    const std::uint32_t attended = __ballot_sync(~0u, code == kAttended);
    const std::uint32_t represented = __ballot_sync(~0u, code == kRepresented);
    if (code == kRepresented) {
      const std::int64_t at = stretch + represented_before + __popc(represented & earlier);
      lists.represented[at] = set.first + c;
      for (int g = 0; g < group; ++g) lists.log_weight[at * group + g] = log_weight(c, g);
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

// Tokens of the chosen columns to the list, a warp a column. The stretch begins where its first column's tokens do.
__device__ inline void list_tokens(const DeviceIndex& index, const DeviceLists& lists, const ColumnSet& set, int chosen) {
  constexpr int kInFlight = 4;
  const std::int32_t* from = index.tokens + static_cast<std::int64_t>(set.slot) * index.token_capacity;
  std::int32_t* to = lists.tokens + static_cast<std::int64_t>(set.slot) * lists.token_stride + set.begin[0];
  for (int base = set.warp; base < chosen; base += set.warps * kInFlight) {
    int source[kInFlight], place[kInFlight], left[kInFlight];
    std::int32_t token[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = base + i * set.warps;
      const int c = at < chosen ? set.numbers[at] : 0;
      source[i] = set.begin[c] + set.lane;
      left[i] = at < chosen ? set.begin[c + 1] - source[i] : 0;  // > 0: this lane has a token
      place[i] = at < chosen ? set.places[at] + set.lane : 0;
      if (left[i] > 0) token[i] = __ldg(from + source[i]);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (left[i] > 0) to[place[i]] = token[i];
      for (int more = 32; more < left[i]; more += 32) to[place[i] + more] = __ldg(from + source[i] + more);
    }
  }
}

}  // namespace tactic::cuda
