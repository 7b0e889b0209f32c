// Softmax weights of a block of queries, summed over the block by token.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace tactic {

constexpr int kColumnBlock = kMaxGroup;  // queries: as many as the score kernel takes for one reading of a key

// logits [rows, stride] of `rows` <= kColumnBlock consecutive queries of one head; row r sees the first first_count + r tokens.
// Adds each row's softmax to column [first_count + rows - 1]. Overwrites logits. Error of a sum: f32 within the block.
void add_weight_block(float* logits, std::int64_t stride, int rows, std::int64_t first_count, double* column);

}  // namespace tactic
