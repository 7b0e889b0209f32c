// What the estimate kernels work on; shared by their copies for the instruction sets.
#pragma once

#include "select/select.h"

namespace tactic {

// Exponents are cut here, so that sums of masses stay far inside f32 (estimation.md 2).
constexpr float kLargestExponent = 60.0f;

struct EstimateTask {
  const HeadTable* table;
  const float* logits;     // [G, stride]
  const float* h;          // [G, parts] or null
  const float* reference;  // [G]
  float softcap;
  float* mass;  // [G, stride], out
};

// For the tail: weight[g * stride + i] = size_c exp(logit + log cosh(sqrt(2 h spread_c)) - reference_g) of c = columns[i], i <
// count. columns and rows of weight are padded to whole vectors (16), and the padding names columns, too. task.mass is not used.
void tail_weights(const EstimateTask& task, int group, const std::int32_t* columns, int count, float* weight,
                  std::int64_t stride);

}  // namespace tactic
