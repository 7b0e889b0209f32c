// Bitmaps of tokens: marking clusters, and listing the marked in ascending order.
#include <bit>

#include "select/select.h"

namespace tactic {

void mark_tokens(const HeadTable& table, std::span<const std::int32_t> clusters, std::uint64_t* bitmap) {
  for (const std::int32_t c : clusters) {
    for (const std::int32_t token : table.tokens[static_cast<std::size_t>(c)]) {
      bitmap[token >> 6] |= std::uint64_t{1} << (token & 63);
    }
  }
}

std::int64_t take_tokens(std::uint64_t* bitmap, std::int64_t words, std::int32_t* ids) {
  std::int32_t* out = ids;
  for (std::int64_t w = 0; w < words; ++w) {
    const auto base = static_cast<std::int32_t>(w * 64);
    for (std::uint64_t bits = bitmap[w]; bits != 0; bits &= bits - 1) *out++ = base + std::countr_zero(bits);
    bitmap[w] = 0;
  }
  return out - ids;
}

}  // namespace tactic
