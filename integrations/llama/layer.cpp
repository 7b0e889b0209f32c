// Choosing the sequence that a row belongs to, leaving layers with a window alone; saved indexes.
#include "layer.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <sstream>

#include "core/error.h"

namespace tactic::llama {
namespace {

// Rollback inside a prompt is recognised when the sequence's first tokens are still there.
constexpr std::int64_t kHeadTokens = 64;

const char* unsupported_shape(const Shape& shape) {
  try {
    validate(shape);
  } catch (const Error&) {
    return "head sizes or group size that Tactic has no kernels for";
  }
  return nullptr;
}

constexpr const char* kSlidingWindow = "sliding window";

// One file feeds all layers: one line for all of them.
std::atomic<bool> g_misfit_told{false};
void tell_misfit(int layer, const char* reason) {
  if (g_misfit_told.exchange(true) && log_level() < 2) return;
  log_line("layer %d: the saved index does not fit: %s; clustering anew", layer, reason);
}

}  // namespace

void RecentQueries::push(const Shape& shape, const float* q, std::int64_t head_stride) {
  const std::size_t row = static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.head_dim);
  rows_.resize(QueryMoment::kWindow * row);
  float* to = rows_.data() + static_cast<std::size_t>(count_ % QueryMoment::kWindow) * row;
  for (int head = 0; head < shape.q_heads; ++head)
    std::copy_n(q + head * head_stride, shape.head_dim, to + head * shape.head_dim);
  ++count_;
}

void RecentQueries::hand_to(Sequence& sequence, const Shape& shape) {
  const std::int64_t row = static_cast<std::int64_t>(shape.q_heads) * shape.head_dim;
  const std::int64_t start = count_ % QueryMoment::kWindow;
  if (count_ > QueryMoment::kWindow) {
    sequence.observe(0, rows_.data() + start * row, static_cast<int>(QueryMoment::kWindow - start), row, shape.head_dim);
    if (start > 0) sequence.observe(0, rows_.data(), static_cast<int>(start), row, shape.head_dim);
  } else if (count_ > 0) {
    sequence.observe(0, rows_.data(), static_cast<int>(count_), row, shape.head_dim);
  }
  count_ = 0;
}

// FNV-1a over the token's K and V rows of all KV heads.
std::uint64_t checksum(const KvView& kv, std::int64_t token) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const Rows* rows : {&kv.k, &kv.v}) {
    for (int head = 0; head < kv.kv_heads; ++head) {
      const std::byte* data = row(kv, *rows, token, head);
      const std::size_t bytes = static_cast<std::size_t>(rows->dim) * size_of(rows->type);
      for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<std::uint64_t>(data[i])) * 0x100000001b3u;
    }
  }
  return hash;
}

Layer::Layer(const AttentionNode& node)
    : k_root_(node.k_root),
      v_root_(node.v_root),
      buffer_(node.k_root->buffer),
      first_cell_(node.first_cell),
      shape_(node.shape),
      params_(node.params),
      rotary_(rotary_of(node.node->src[0], node.shape.head_dim)),
      view_(node.view()),
      unsupported_(unsupported_shape(node.shape)),
      cells_(node.k_root->ne[1]),
      watch_(node.shape, node.params) {
  std::sscanf(k_root_->name, "cache_k_l%d", &number_);
  if (log_level() >= 2 || (log_level() == 1 && number_ == 0)) {
    static const char* const layouts[] = {"unknown", "none", "interleaved", "halves"};
    log_line("%s: %d/%d heads, head_dim %d, rotary %s, %lld cells", k_root_->name, shape_.q_heads, shape_.kv_heads,
             shape_.head_dim, layouts[static_cast<int>(rotary_.layout)], static_cast<long long>(cells_.count()));
  }
}

const char* Layer::check(const AttentionNode& node) const {
  if (unsupported_ != nullptr) return unsupported_;
  if (windowed()) return kSlidingWindow;
  const Shape& s = node.shape;
  if (s.q_heads != shape_.q_heads || s.kv_heads != shape_.kv_heads || s.head_dim != shape_.head_dim ||
      s.v_head_dim != shape_.v_head_dim || node.params.scale != params_.scale || node.params.softcap != params_.softcap ||
      node.v_root != v_root_) {
    return "the node changed its shape";
  }
  if (node.cells > cells_.count()) return "the view is longer than the cache";
  return nullptr;
}

Track& Layer::track_for(const Visible& visible, const Options& options) {
  Slot* best = nullptr;
  std::int64_t best_shown = 0;
  for (Slot& slot : tracks_) {
    // A row of this track shows its first tokens; the current one is looked at first, so that plain decoding compares nothing.
    const std::int64_t shown = slot.track->shown(cells_, visible, kHeadTokens);
    if (shown > best_shown || (shown == best_shown && best != nullptr && shown > 0 && slot.used > best->used)) {
      best = &slot;
      best_shown = shown;
    }
  }
  for (Slot& slot : tracks_) {
    if (best == nullptr && slot.track->slid(cells_, visible)) best = &slot;
  }
  if (best == nullptr && tracks_.size() < kTracks) {
    SequenceConfig config{1, shape_, params_, rotary_, options};
    tracks_.push_back({std::make_unique<Track>(std::move(config), cells_.count()), 0});
    best = &tracks_.back();
  }
  if (best == nullptr) {
    best = &*std::min_element(tracks_.begin(), tracks_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
  }
  best->used = ++clock_;
  return *best->track;
}

void Layer::note_window(int steps) {
  window_steps_ = steps;
  if (!windowed()) return;
  tracks_.clear();
  current_ = nullptr;
  queries_.clear();
}

void Layer::look_for_window(const Visible& row, const Visible& next) {
  bool shared = false;
  for (std::size_t word = 0; word < row.words.size(); ++word) shared = shared || (row.words[word] & next.words[word]) != 0;
  // A row of another sequence shows the oldest token if it shows any of this one's.
  if (shared && !next.has(oldest_shown(cells_, row))) note_window(kWindowSteps);
}

Track* Layer::follow(std::span<const Visible> rows, const Settings& settings, const char*& reason) {
  const Visible& last = rows.back();
  if (last.count == 0) {
    reason = "the mask shows nothing";
    return nullptr;
  }
  Track& track = track_for(last, settings.options());
  if (!track.reconcile(cells_, last)) {
    note_window(window_steps_ + 1);
    reason = kSlidingWindow;
    return nullptr;
  }
  window_steps_ = 0;
  current_ = &track;
  for (const Visible& row : rows.first(rows.size() - 1)) {
    if (row.count == 0 || !track.is_prefix(row)) {
      reason = "several sequences in one batch";
      return nullptr;
    }
  }
  track.use(settings.options(), settings.generation());
  return &track;
}

KvView Layer::view(const Track& track) const {
  KvView kv = view_;
  kv.tokens = track.tokens();
  kv.block_table = track.block_table();
  return kv;
}

std::size_t Layer::index_bytes() const {
  std::size_t bytes = 0;
  for (const Slot& slot : tracks_) bytes += slot.track->sequence().index_bytes();
  return bytes;
}

void Layer::drop_index() {
  for (Slot& slot : tracks_) slot.track->sequence().clear();
  restart_prompt();
  queries_.clear();
  saved_.reset();
}

void Layer::restart_prompt() {
  for (Slot& slot : tracks_) slot.track->restart_prompt();
}

void Layer::offer(SavedIndex saved) {
  g_misfit_told = false;
  saved_ = std::make_unique<SavedIndex>(std::move(saved));
}

void Layer::take_offer(Track& track, const KvView& kv) {
  if (!saved_) return;
  const std::unique_ptr<SavedIndex> saved = std::move(saved_);
  const char* reason = nullptr;
  if (saved->tokens > kv.tokens) reason = "the cache holds fewer tokens";
  for (std::size_t i = 0; i < saved->sampled.size() && reason == nullptr; ++i) {
    if (checksum(kv, saved->sampled[i]) != saved->checksums[i]) reason = "the cache holds other keys or values";
  }
  if (reason != nullptr) {
    tell_misfit(number_, reason);
    return;
  }
  try {
    std::istringstream in(saved->bytes);
    track.sequence().load(in);
  } catch (const Error& error) {
    tell_misfit(number_, error.what());
  }
}

}  // namespace tactic::llama
