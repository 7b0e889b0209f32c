// What happened to the cells of one layer's K/V cache: the order in which they were written and every change of content.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tactic::llama {

class Cells {
 public:
  explicit Cells(std::int64_t count);
  std::int64_t count() const { return static_cast<std::int64_t>(versions_.size()); }

  // `step` numbers the computation or write that does it: a cell written twice in one (K, then V) changes once.
  void appended(std::int64_t cell, std::uint32_t step);                      // a new token
  void replaced(std::int64_t first, std::int64_t last, std::uint32_t step);  // new tokens in [first, last) (state restored)
  void altered(std::int64_t first, std::int64_t last, std::uint32_t step);   // same tokens, other content (turned in place)

  std::uint32_t version(std::int64_t cell) const { return versions_[static_cast<std::size_t>(cell)]; }
  // When the cell's token came; equal ones came together, in the order of their cells.
  std::uint64_t arrival(std::int64_t cell) const { return order_[static_cast<std::size_t>(cell)]; }
  // Cells in the order in which their tokens came.
  void sort(std::span<std::int32_t> cells) const;

  // A log of changed cells, so that a reader who kept up learns of one new token without looking at all cells. Readers keep
  // a position; since() gives what came after it, or false when the log no longer goes back that far.
  std::uint64_t position() const { return log_begin_ + log_.size(); }
  bool since(std::uint64_t position, std::span<const std::int32_t>& cells) const;

 private:
  void note(std::int64_t cell, std::uint32_t step);
  void overflow();

  static constexpr std::size_t kLogLimit = 4096;  // cells; a reader further behind looks at all of them, which costs a sort
  std::vector<std::uint32_t> versions_;           // 0: never seen to change
  std::vector<std::uint64_t> order_;              // of the token's arrival; ties by cell
  std::uint64_t arrivals_ = 0;
  std::vector<std::int32_t> log_;
  std::uint64_t log_begin_ = 0;
};

}  // namespace tactic::llama
