// From chosen columns to the tokens that attend/ reads. Included by .cu files only.
#pragma once

#include <cstdint>

#include "core/device.h"

namespace tactic::cuda {

enum ColumnCode : std::uint8_t { kDropped = 0, kAttended = 1, kRepresented = 2 };

// Chosen columns of one stretch of the lists in the order of the list, in shared memory.
struct ChosenColumns {
  std::int32_t* places;   // of a column's tokens in the stretch, ascending
  std::int32_t* sources;  // of its tokens in the index, minus the place
  __device__ __forceinline__ void set(int i, int place, int begin) const {
    places[i] = place;
    sources[i] = begin - place;
  }
};

// Tokens of `count` chosen columns to the list, a thread a token: all threads of the block. `from` and `to` are the (sequence,
// head)'s tokens of the index and the stretch of the list.
__device__ __forceinline__ void list_tokens(const ChosenColumns& chosen, int count, int tokens, const std::int32_t* from,
                                            std::int32_t* to) {
  constexpr int kEach = 4;  // that a thread looks for at a time
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x); first < tokens; first += kEach * threads) {
    int at[kEach] = {};
#pragma unroll 1
    for (int left = count; left > 1;) {  // the last place that is not behind the token's
      const int half = left / 2;
#pragma unroll
      for (int i = 0; i < kEach; ++i) at[i] += chosen.places[at[i] + half] <= first + i * threads ? half : 0;
      left -= half;
    }
    std::int32_t token[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = first + i * threads;
      if (place < tokens) token[i] = __ldg(from + chosen.sources[at[i]] + place);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (first + i * threads < tokens) to[first + i * threads] = token[i];
    }
  }
}

}  // namespace tactic::cuda
