// One layer's K/V cache as the plug-in sees it: its cells, the sequences in it, the queries it saw last.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cells.h"
#include "graph.h"
#include "mask.h"
#include "settings.h"
#include "track.h"

namespace tactic::llama {

// The last queries of a layer as they came, until clustering asks for them: folding them into the metric at once would cost
// a good part of prefill for tokens that do not count in the end.
class RecentQueries {
 public:
  // One token: q [heads, head_dim], heads `head_stride` floats apart.
  void push(const Shape& shape, const float* q, std::int64_t head_stride);
  void hand_to(Sequence& sequence, const Shape& shape);  // oldest first; then empty
  void clear() { count_ = 0; }

 private:
  std::vector<float> rows_;  // ring of QueryMoment::kWindow rows [q_heads, head_dim]
  std::int64_t count_ = 0;   // pushed since the last hand-over
};

// A saved index that waits for the layer's first step: Sequence::save's bytes and what the cache must hold for it to fit.
struct SavedIndex {
  std::int64_t tokens = 0;
  std::vector<std::int64_t> sampled;     // token numbers
  std::vector<std::uint64_t> checksums;  // of their K and V rows
  std::string bytes;
};
std::uint64_t checksum(const KvView& kv, std::int64_t token);

class Layer {
 public:
  explicit Layer(const AttentionNode& node);

  // The track that holds exactly the tokens that the last row shows, after bringing it up to date; null with a reason when the
  // rows are not steps of one sequence or the layer is one that Tactic leaves alone.
  Track* follow(std::span<const Visible> rows, const Settings& settings, const char*& reason);
  // Null when the node fits what the layer was made for, else the reason.
  const char* check(const AttentionNode& node) const;
  // Two rows of a prompt, one behind the other: a layer whose window slid on between them is left alone from here.
  void look_for_window(const Visible& row, const Visible& next);

  int number() const { return number_; }  // n of the tensor's name, cache_k_l<n>, or -1
  const ggml_tensor* k_root() const { return k_root_; }
  const ggml_tensor* v_root() const { return v_root_; }
  ggml_backend_buffer* buffer() const { return buffer_; }
  std::int64_t first_cell() const { return first_cell_; }
  Cells& cells() { return cells_; }
  Track* current() { return current_; }
  const Shape& shape() const { return shape_; }
  RecentQueries& queries() { return queries_; }
  PromptWatch& watch() { return watch_; }
  const AttentionParams& params() const { return params_; }
  std::size_t index_bytes() const;
  KvView view(const Track& track) const;  // of the track's tokens, from the cache tensors themselves

  void drop_index();
  void restart_prompt();
  void offer(SavedIndex saved);
  // Takes the offered index if it fits the tokens in the cache. `kv`: of the track's tokens.
  void take_offer(Track& track, const KvView& kv);

 private:
  Track& track_for(const Visible& visible, const Options& options);
  void note_window(int steps);
  bool windowed() const { return window_steps_ >= kWindowSteps; }

  // Sequences whose index is kept; a further one replaces the one that decoded longest ago.
  static constexpr std::size_t kTracks = 4;
  // Steps in a row whose oldest token fell off; one alone may be a program that takes it away.
  static constexpr int kWindowSteps = 2;

  struct Slot {
    std::unique_ptr<Track> track;
    std::uint64_t used = 0;
  };
  const ggml_tensor* k_root_;
  const ggml_tensor* v_root_;
  ggml_backend_buffer* buffer_;
  std::int64_t first_cell_;
  int number_ = -1;
  Shape shape_;
  AttentionParams params_;
  Rotary rotary_;
  KvView view_;  // cell 0 of the stream on
  const char* unsupported_ = nullptr;
  int window_steps_ = 0;
  Cells cells_;
  std::vector<Slot> tracks_;
  Track* current_ = nullptr;
  std::uint64_t clock_ = 0;
  RecentQueries queries_;
  PromptWatch watch_;
  std::unique_ptr<SavedIndex> saved_;
};

}  // namespace tactic::llama
