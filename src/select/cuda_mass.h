// What the choice by mass is given, and its shared memory. Included by .cu files only.
#pragma once

#include "select/cuda_histogram.h"
#include "select/cuda_piece.h"

namespace tactic::cuda {

struct MassTask {
  SelectTask select;
  float mass;
  bool joint;
  int tail;     // most represented columns
  bool shares;  // fit into shared memory
};

struct MassShared {
  std::uint32_t* sum;   // [G + 1, kBins] shares of the heads by bin, tokens
  std::int32_t* count;  // [3, 32]
  float* price;         // [kMaxGroup]
  float* best_price;    // [kMaxGroup]
  float* need;          // [kMaxGroup] share that is missing; <= 0: nothing
  float* free;          // [kMaxGroup] share of all columns
  float* reached;       // [kMaxGroup] at the cut; then what is to spare
  std::int32_t* cut;    // [kMaxGroup + 1] bins
  std::int32_t* state;  // [4] tokens of the round and of the best, cut of the best, cut of the tail
  std::int32_t* begin;  // [columns + 1]
  std::int32_t* places;
  std::int32_t* sources;
  std::uint8_t* code;
  float* share;  // [G, columns], or null: it stays in global memory

  __host__ __device__ std::size_t place(std::byte* base, int group, int columns, bool shares) {
    std::size_t at = 0;
    const auto take = [&](auto*& pointer, std::size_t size) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + at);
      at += (size * sizeof(*pointer) + 15) / 16 * 16;
    };
    const auto n = static_cast<std::size_t>(columns);
    take(sum, static_cast<std::size_t>(group + 1) * kBins);
    take(count, 3 * 32);
    for (float** values : {&price, &best_price, &need, &free, &reached}) take(*values, kMaxGroup);
    take(cut, kMaxGroup + 1);
    take(state, 4);
    take(begin, n + 1), take(places, n), take(sources, n), take(code, n);
    take(share, shares ? static_cast<std::size_t>(group) * n : 0);
    if (!shares) share = nullptr;
    return at;
  }
};

}  // namespace tactic::cuda
