// The exact share of the softmax mass that a step attended, for traces.
#pragma once

#include <span>
#include <vector>

#include "attend/attend.h"

namespace tactic::llama {

// [q_heads]. bits [kv_heads or q_heads, ceil(tokens / 64)]: attended tokens. Reads every K row.
std::vector<float> true_masses(const float* q, const Shape& shape, const AttentionParams& params, const KvView& kv,
                               std::span<const std::uint64_t> bits);

}  // namespace tactic::llama
