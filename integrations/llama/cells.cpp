// Versions, order and log of a cache's cells.
#include "cells.h"

#include <algorithm>
#include <numeric>

namespace tactic::llama {

Cells::Cells(std::int64_t count) : versions_(static_cast<std::size_t>(count), 0), order_(static_cast<std::size_t>(count), 0) {
  log_.reserve(kLogLimit);
}

void Cells::overflow() {
  log_begin_ += log_.size() + 1;
  log_.clear();
}

void Cells::note(std::int64_t cell, std::uint32_t step) {
  versions_[static_cast<std::size_t>(cell)] = step;
  if (log_.size() == kLogLimit) overflow();
  log_.push_back(static_cast<std::int32_t>(cell));
}

void Cells::appended(std::int64_t cell, std::uint32_t step) {
  if (versions_[static_cast<std::size_t>(cell)] == step) return;
  order_[static_cast<std::size_t>(cell)] = ++arrivals_;
  note(cell, step);
}

void Cells::replaced(std::int64_t first, std::int64_t last, std::uint32_t step) {
  for (std::int64_t cell = first; cell < last; ++cell) {
    order_[static_cast<std::size_t>(cell)] = ++arrivals_;
    versions_[static_cast<std::size_t>(cell)] = step;
  }
  overflow();
}

void Cells::altered(std::int64_t first, std::int64_t last, std::uint32_t step) {
  std::fill(versions_.begin() + first, versions_.begin() + last, step);
  overflow();
}

void Cells::sort(std::span<std::int32_t> cells) const {
  const auto before = [&](std::int32_t a, std::int32_t b) { return arrival(a) != arrival(b) ? arrival(a) < arrival(b) : a < b; };
  if (!std::is_sorted(cells.begin(), cells.end(), before)) std::sort(cells.begin(), cells.end(), before);
}

bool Cells::since(std::uint64_t position, std::span<const std::int32_t>& cells) const {
  if (position < log_begin_ || position > log_begin_ + log_.size()) return false;
  const auto skip = static_cast<std::size_t>(position - log_begin_);
  cells = std::span<const std::int32_t>(log_).subspan(skip);
  return true;
}

}  // namespace tactic::llama
