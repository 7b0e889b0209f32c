// Which cells a row of the attention mask shows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine.h"

namespace tactic::llama {

// One row: bit c of words, cell c is visible.
struct Visible {
  std::vector<std::uint64_t> words;
  std::int64_t count = 0;

  bool has(std::int64_t cell) const { return (words[static_cast<std::size_t>(cell) / 64] >> (cell % 64) & 1) != 0; }
};

// Cells that one row shows. in_order: they are the first ones of the cache.
std::int64_t count_visible(const ggml_tensor* mask, int row, bool& in_order);

// Reads masks, which all layers of a graph share, once per graph. Memory is kept between graphs.
class MaskReader {
 public:
  void forget() { used_ = 0; }
  // Rows first .. first + rows - 1, or empty when they hold anything but 0 and -infinity.
  std::span<const Visible> read(const ggml_tensor* mask, int rows, int first = 0);

 private:
  struct Entry {
    const void* data = nullptr;
    std::int64_t cells = 0;
    int first = 0;
    int rows = 0;
    bool plain = false;
    std::vector<Visible> visible;
  };
  std::vector<Entry> entries_;
  std::size_t used_ = 0;
};

}  // namespace tactic::llama
