// One sequence in one layer's cache: which cells hold its tokens, in order, and the Tactic index over them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "baselines/baselines.h"
#include "cells.h"
#include "mask.h"
#include "sequence/sequence.h"

namespace tactic::llama {

// Of the cells that a row shows, the one whose token came first; -1: it shows none.
std::int32_t oldest_shown(const Cells& cells, const Visible& visible);

class Track {
 public:
  Track(SequenceConfig config, std::int64_t most_tokens);

  // Brings the list of cells up to what the mask shows; tokens that vanished or changed leave the index with all after
  // them. False when the oldest tokens fall off without having been touched (a sliding window).
  bool reconcile(const Cells& cells, const Visible& visible);
  // Whether the cells of `visible` are the list's first `visible.count`.
  bool is_prefix(const Visible& visible) const;
  // Whether the oldest token that the row shows is a later one of the list, it and the list's first untouched: the front fell
  // off.
  bool slid(const Cells& cells, const Visible& visible) const;
  // How well the track fits a row: tokens of the list that the row shows, from the first on; only `most` are looked at.
  std::int64_t shown(const Cells& cells, const Visible& visible, std::int64_t most) const;

  std::int64_t tokens() const { return static_cast<std::int64_t>(cells_.size()); }
  std::int64_t indexed() const { return sequence_.layer(0).last(); }  // tokens that the index reaches
  // Cell of each token, or null when token t is in cell t.
  const std::int32_t* block_table() const { return identity_ ? nullptr : cells_.data(); }

  // Tokens before the first row that was attended here (or since restart_prompt()); -1: none was.
  std::int64_t prompt() const { return prompt_; }
  void note_step(std::int64_t tokens) {
    if (prompt_ < 0) prompt_ = tokens - 1;
  }
  void restart_prompt() { prompt_ = -1; }
  // The method that Tactic is compared with; the caller makes one when there is none of this generation of settings.
  std::optional<LayerBaseline>& baseline(std::uint64_t generation) {
    if (generation != baseline_generation_) baseline_.reset();
    baseline_generation_ = generation;
    return baseline_;
  }

  // `generation` tells options apart cheaply: equal ones are not looked at again.
  void use(const Options& options, std::uint64_t generation);
  Sequence& sequence() { return sequence_; }
  // After clustering failed (NaN in the cache): dense until the tokens change from the start.
  void give_up() { given_up_ = true; }
  bool given_up() const { return given_up_; }
  const Sequence& sequence() const { return sequence_; }

 private:
  bool follow_log(const Cells& cells, const Visible& visible);
  bool rebuild(const Cells& cells, const Visible& visible);
  void truncate(std::int64_t tokens);
  void append(const Cells& cells, std::int32_t cell);
  bool holds(std::int64_t cell) const;
  bool equals(const Visible& visible) const;
  bool untouched(const Cells& cells, std::size_t token) const { return versions_[token] == cells.version(cells_[token]); }

  Sequence sequence_;
  std::vector<std::int32_t> cells_;      // [tokens]
  std::vector<std::uint32_t> versions_;  // [tokens] version of the cell when the token joined
  std::vector<std::uint64_t> bits_;      // cells_ as a set
  bool identity_ = true;
  std::int64_t prompt_ = -1;
  std::optional<LayerBaseline> baseline_;
  std::uint64_t baseline_generation_ = 0;
  bool given_up_ = false;
  std::uint64_t position_ = 0;  // in the log of the cells
  std::vector<std::int32_t> scratch_;
  std::uint64_t generation_ = 0;  // of the options in use
};

}  // namespace tactic::llama
