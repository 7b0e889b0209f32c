// A cut of the descending order of scores: the shortest prefix whose sums reach what is needed. Found without sorting.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace tactic {

constexpr int kCutPadding = 16;          // elements that may be read, never used, behind the arrays of a CutTask
constexpr int kCutRows = kMaxGroup + 1;  // a row per query head and one of cluster sizes

struct CutTask {
  const std::int32_t* key = nullptr;  // [count] scores as the bits of non-negative floats, which order like the floats
  const float* row[kCutRows] = {};    // [count] each: what an element adds to sum r
  double need[kCutRows] = {};         // of rows 0 .. needed - 1
  int rows = 0;
  int needed = 0;
  int count = 0;
  std::int32_t* work_key = nullptr;  // [count + padding]
  float* work = nullptr;             // [rows, work_stride], work_stride >= count + padding
  std::int64_t work_stride = 0;
};

// The prefix: every element with a larger key, and the first `ties` of those with this key.
struct Cut {
  std::int32_t key = 0x7fffffff;
  int ties = 0;
  int taken = 0;                 // elements of the prefix
  double sum[kCutRows] = {};     // over the prefix
  double before[kCutRows] = {};  // over the prefix without its last element
};

}  // namespace tactic
