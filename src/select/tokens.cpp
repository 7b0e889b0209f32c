// Tokens of clusters: one behind the other, or marked in a bitmap and listed in ascending order.
#include <algorithm>
#include <bit>

#include "select/select.h"

namespace tactic {

std::int64_t list_tokens(const HeadTable& table, std::span<const std::int32_t> clusters, std::int32_t* ids) {
  // The lists lie all over a megabyte and are read once a step: asked for early, or each costs a trip to the memory.
  constexpr std::size_t kAhead = 8;
  std::int32_t* out = ids;
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    if (i + 2 * kAhead < clusters.size()) __builtin_prefetch(&table.tokens[static_cast<std::size_t>(clusters[i + 2 * kAhead])]);
    if (i + kAhead < clusters.size()) {
      const auto coming = std::as_bytes(table.tokens[static_cast<std::size_t>(clusters[i + kAhead])]);
      for (std::size_t byte = 0; byte < coming.size(); byte += 64) __builtin_prefetch(coming.data() + byte);
    }
    const auto tokens = table.tokens[static_cast<std::size_t>(clusters[i])];
    out = std::copy(tokens.begin(), tokens.end(), out);
  }
  return out - ids;
}

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
