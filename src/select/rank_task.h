// What a pass of the rank kernel works on; shared by its copies for the instruction sets.
#pragma once

#include <cstdint>

#include "select/select.h"

namespace tactic {

constexpr int kPackedBlock = 16;  // columns of a block of HeadTable's packed centroids

struct RankTask {
  const HeadTable* table;
  const std::int32_t* pairs;  // [G, head_dim / 2] two 16-bit q elements each, for int8 centroids
  const float* q;             // [G, head_dim], for f16 centroids
  const float* unit;          // [G] logit of one unit of the sum
  float softcap;
  float* logits;  // [G, stride]
  std::int64_t stride;
};

}  // namespace tactic
