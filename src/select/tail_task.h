// What the tail's kernels work on; shared by their copies for the instruction sets.
#pragma once

#include <span>

#include "select/select.h"

namespace tactic {

struct FactorTask {
  const HeadTable* table;
  int group;
  const float* mass;
  const float* exact;
  std::span<const std::int32_t> chosen;
  float* factor;
  SelectScratch* scratch;
};

struct HeaviestTask {
  const HeadTable* table;
  int group;
  const float* total;  // [G]
  const std::uint8_t* chosen;
  const float* bound;  // [G, table stride] or null
  int limit;
  float price;             // fewest summed squares of shares that a mean V is worth; 0: any
  std::int32_t* column;    // [stride] dropped columns
  int count;               // of column
  const float* weight;     // [G, stride] of the columns
  std::int64_t stride;     // columns of the table and padding
  float* key;              // [stride] scratch
  float* work;             // [stride] scratch
  float* ones;             // [stride] scratch
  std::int32_t* work_key;  // [stride] scratch
};

struct AddTask {
  const std::int8_t* const* row;  // [count] mean V of the clusters
  const float* weight;            // [count, G] weight times the row's scale
  int count;
  int group;
  int dim;
  float* output;  // [G, dim]
};

}  // namespace tactic
