// Bits from F16 masks.
#include "mask.h"

#include <algorithm>
#include <bit>

namespace tactic::llama {
namespace {

// F16 bit patterns that the engine writes: 0 shows a cell, -infinity hides it.
constexpr std::uint16_t kShown = 0x0000, kHidden = 0xfc00;

bool read_row(const std::uint16_t* mask, std::int64_t cells, Visible& out) {
  out.words.assign(static_cast<std::size_t>((cells + 63) / 64), 0);
  out.count = 0;
  bool plain = true;
  for (std::int64_t first = 0; first < cells; first += 64) {
    std::uint64_t word = 0;
    const std::int64_t count = std::min<std::int64_t>(64, cells - first);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint16_t value = mask[first + i];
      word |= static_cast<std::uint64_t>(value == kShown) << i;
      plain = plain && (value == kShown || value == kHidden);
    }
    out.words[static_cast<std::size_t>(first) / 64] = word;
    out.count += std::popcount(word);
  }
  return plain;
}

}  // namespace

std::int64_t count_visible(const ggml_tensor* mask, int row, bool& in_order) {
  const auto* values = reinterpret_cast<const std::uint16_t*>(static_cast<const std::byte*>(mask->data) +
                                                              static_cast<std::size_t>(row) * mask->nb[1]);
  std::int64_t count = 0, last = -1;
  for (std::int64_t cell = 0; cell < mask->ne[0]; ++cell) {
    if (values[cell] != kShown) continue;
    ++count;
    last = cell;
  }
  in_order = last == count - 1;
  return count;
}

std::span<const Visible> MaskReader::read(const ggml_tensor* mask, int rows, int first) {
  Entry* entry = nullptr;
  for (std::size_t i = 0; i < used_ && entry == nullptr; ++i) {
    Entry& known = entries_[i];
    if (known.data == mask->data && known.cells == mask->ne[0] && known.first == first && known.rows == rows) entry = &known;
  }
  if (entry == nullptr) {
    if (used_ == entries_.size()) entries_.emplace_back();
    entry = &entries_[used_++];
    entry->data = mask->data;
    entry->cells = mask->ne[0];
    entry->first = first;
    entry->rows = rows;
    entry->plain = true;
    if (entry->visible.size() < static_cast<std::size_t>(rows)) entry->visible.resize(static_cast<std::size_t>(rows));
    for (int row = 0; row < rows; ++row) {
      const auto* values = reinterpret_cast<const std::uint16_t*>(static_cast<const std::byte*>(mask->data) +
                                                                  static_cast<std::size_t>(first + row) * mask->nb[1]);
      entry->plain = read_row(values, mask->ne[0], entry->visible[static_cast<std::size_t>(row)]) && entry->plain;
    }
  }
  if (!entry->plain) return {};
  return {entry->visible.data(), static_cast<std::size_t>(rows)};
}

}  // namespace tactic::llama
