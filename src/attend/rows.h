// Tiles of row pointers: where the K and V rows of the next few tokens of a list lie. Not per ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attend/attend.h"

namespace tactic::attend {

// Tokens per tile of the online softmax, and how far ahead rows are asked for. Its fixed costs (reductions of maximum and sum,
// the rescale) want it large: on a Zen 4, 64 tokens take 7% less than 32. Two tiles of K and V of 8 heads at head_dim 128 in f16,
// the one in work and the one on its way, are 512 KB: half an L2.
constexpr int kTile = 64;

// Rows of KV head 0, or of the one head a list is walked for. The count is padded to a multiple of 4 by the last row.
struct RowTile {
  int count = 0;
  const std::byte* k[kTile];
  const std::byte* v[kTile];
};

// Tokens [begin, begin + kTile) of the list, as far as it goes.
void locate(const KvView& kv, int kv_head, const TokenList& list, std::int64_t begin, RowTile& tile);

}  // namespace tactic::attend
