// Following the cells of a sequence from step to step.
#include "track.h"

#include <algorithm>
#include <bit>

namespace tactic::llama {

std::int32_t oldest_shown(const Cells& cells, const Visible& visible) {
  std::int32_t oldest = -1;
  for (std::size_t word = 0; word < visible.words.size(); ++word) {
    for (std::uint64_t bits = visible.words[word]; bits != 0; bits &= bits - 1) {
      const auto cell = static_cast<std::int32_t>(word * 64) + std::countr_zero(bits);
      if (oldest < 0 || cells.arrival(cell) < cells.arrival(oldest)) oldest = cell;
    }
  }
  return oldest;
}

Track::Track(SequenceConfig config, std::int64_t most_tokens) : sequence_(std::move(config)) {
  // So that a step that adds a token never allocates.
  cells_.reserve(static_cast<std::size_t>(most_tokens));
  versions_.reserve(static_cast<std::size_t>(most_tokens));
  bits_.reserve(static_cast<std::size_t>(most_tokens + 63) / 64);
}

void Track::use(const Options& options, std::uint64_t generation) {
  if (generation == generation_) return;
  sequence_.set_options(options);
  generation_ = generation;
}

bool Track::holds(std::int64_t cell) const {
  const auto word = static_cast<std::size_t>(cell) / 64;
  return word < bits_.size() && (bits_[word] >> (cell % 64) & 1) != 0;
}

bool Track::equals(const Visible& visible) const {
  if (visible.count != tokens()) return false;  // so extra words of either side are zero when the shared ones agree
  return std::equal(bits_.begin(), bits_.begin() + static_cast<std::ptrdiff_t>(std::min(bits_.size(), visible.words.size())),
                    visible.words.begin());
}

void Track::append(const Cells& cells, std::int32_t cell) {
  identity_ = identity_ && cell == tokens();
  cells_.push_back(cell);
  versions_.push_back(cells.version(cell));
  const auto word = static_cast<std::size_t>(cell) / 64;
  if (word >= bits_.size()) bits_.resize(word + 1, 0);
  bits_[word] |= std::uint64_t{1} << (cell % 64);
}

bool Track::reconcile(const Cells& cells, const Visible& visible) {
  if (follow_log(cells, visible)) return true;
  return rebuild(cells, visible);
}

// The usual step: nothing changed but some new cells, which the log names.
bool Track::follow_log(const Cells& cells, const Visible& visible) {
  std::span<const std::int32_t> changed;
  if (!cells.since(position_, changed)) return false;
  const std::size_t old = cells_.size();
  const auto limit = static_cast<std::int64_t>(visible.words.size()) * 64;
  for (const std::int32_t cell : changed) {
    if (holds(cell)) {
      const auto fresh = cells_.begin() + static_cast<std::ptrdiff_t>(old);
      if (std::find(fresh, cells_.end(), cell) == cells_.end()) return false;  // an old token was overwritten
      continue;                                                                // K and V of a new one, in two computations
    }
    if (cell < limit && visible.has(cell)) append(cells, cell);
  }
  position_ = cells.position();
  return equals(visible);
}

bool Track::rebuild(const Cells& cells, const Visible& visible) {
  scratch_.clear();
  for (std::size_t word = 0; word < visible.words.size(); ++word) {
    for (std::uint64_t bits = visible.words[word]; bits != 0; bits &= bits - 1) {
      scratch_.push_back(static_cast<std::int32_t>(word * 64) + std::countr_zero(bits));
    }
  }
  cells.sort(scratch_);

  std::size_t same = 0;
  while (same < cells_.size() && same < scratch_.size() && cells_[same] == scratch_[same] &&
         versions_[same] == cells.version(scratch_[same])) {
    ++same;
  }
  const bool window = slid(cells, visible);
  if (same == 0 && !cells_.empty()) sequence_.clear();  // another text: its queries say nothing of this one
  if (same < cells_.size()) truncate(static_cast<std::int64_t>(same));
  cells_.resize(same);
  versions_.resize(same);
  bits_.assign(visible.words.size(), 0);
  given_up_ = given_up_ && same > 0;
  identity_ = true;
  for (std::size_t i = 0; i < same; ++i) {
    const std::int32_t cell = cells_[i];
    bits_[static_cast<std::size_t>(cell) / 64] |= std::uint64_t{1} << (cell % 64);
    identity_ = identity_ && cell == static_cast<std::int32_t>(i);
  }
  for (std::size_t i = same; i < scratch_.size(); ++i) append(cells, scratch_[i]);
  position_ = cells.position();
  return !window;
}

void Track::truncate(std::int64_t tokens) {
  sequence_.truncate(tokens);
  if (baseline_) baseline_->truncate(tokens);
  if (tokens < prompt_) prompt_ = -1;
}

bool Track::is_prefix(const Visible& visible) const {
  const std::int64_t count = visible.count;
  if (count > tokens()) return false;
  // The list's set without its last tokens: what a prefix must show.
  for (std::int64_t token = count; token < tokens(); ++token) {
    const std::int32_t cell = cells_[static_cast<std::size_t>(token)];
    if (static_cast<std::size_t>(cell) / 64 < visible.words.size() && visible.has(cell)) return false;
  }
  for (std::size_t word = 0; word < visible.words.size(); ++word) {
    const std::uint64_t known = word < bits_.size() ? bits_[word] : 0;
    if ((visible.words[word] & ~known) != 0) return false;
  }
  return true;  // `count` cells, all of the list, none of its last tokens - count
}

bool Track::slid(const Cells& cells, const Visible& visible) const {
  const std::int32_t oldest = oldest_shown(cells, visible);
  if (oldest < 0 || !holds(oldest)) return false;
  const auto at = static_cast<std::size_t>(std::find(cells_.begin(), cells_.end(), oldest) - cells_.begin());
  return at > 0 && untouched(cells, at) && untouched(cells, 0);
}

std::int64_t Track::shown(const Cells& cells, const Visible& visible, std::int64_t most) const {
  const std::int64_t end = std::min(most, tokens());
  const auto limit = static_cast<std::int64_t>(visible.words.size()) * 64;
  for (std::int64_t token = 0; token < end; ++token) {
    const std::int32_t cell = cells_[static_cast<std::size_t>(token)];
    if (cell >= limit || !visible.has(cell) || versions_[static_cast<std::size_t>(token)] != cells.version(cell)) return token;
  }
  return end;
}

}  // namespace tactic::llama
