// Addresses of K and V rows behind strides, block tables and id lists.
#include "attend/rows.h"

#include <algorithm>

namespace tactic::attend {

void locate(const KvView& kv, int kv_head, const TokenList& list, std::int64_t begin, RowTile& tile) {
  tile.count = static_cast<int>(std::clamp<std::int64_t>(list.count - begin, 0, kTile));
  if (tile.count == 0) return;
  const std::byte* k = kv.k.data + kv_head * kv.k.head_stride;
  const std::byte* v = kv.v.data + kv_head * kv.v.head_stride;
  for (int i = 0; i < tile.count; ++i) {
    const std::int64_t token = list.ids != nullptr ? list.ids[begin + i] : list.first + begin + i;
    if (kv.block_table == nullptr) {
      tile.k[i] = k + token * kv.k.token_stride;
      tile.v[i] = v + token * kv.v.token_stride;
      continue;
    }
    // Token numbers fit 32 bits (ids are), and a 32-bit division is several times cheaper.
    const auto number = static_cast<std::uint32_t>(token);
    const auto size = static_cast<std::uint32_t>(kv.block_size);
    const std::int64_t block = kv.block_table[number / size];
    const std::int64_t inside = number % size;
    tile.k[i] = k + block * kv.k.block_stride + inside * kv.k.token_stride;
    tile.v[i] = v + block * kv.v.block_stride + inside * kv.v.token_stride;
  }
  for (int i = tile.count; i % 4 != 0; ++i) {
    tile.k[i] = tile.k[tile.count - 1];
    tile.v[i] = tile.v[tile.count - 1];
  }
}

}  // namespace tactic::attend
