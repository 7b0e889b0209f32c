// Tiles of row pointers: where the K and V rows of the next few tokens of a list lie. Not per ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attend/attend.h"

namespace tactic::attend {

// Tokens per tile of the online softmax: K and V of a tile and of the next (prefetched) one, 2 * 2 * 32 rows of 256 B at
// head_dim 128 in f16, are the 32 KB of an L1; one rescale of the output per tile costs 1/32 of its update.
constexpr int kTile = 32;

// Rows of KV head 0, or of the one head a list is walked for. The count is padded to a multiple of 4 by the last row.
struct RowTile {
  int count = 0;
  const std::byte* k[kTile];
  const std::byte* v[kTile];
};

// Tokens [begin, begin + kTile) of the list, as far as it goes.
void locate(const KvView& kv, int kv_head, const TokenList& list, std::int64_t begin, RowTile& tile);

}  // namespace tactic::attend
