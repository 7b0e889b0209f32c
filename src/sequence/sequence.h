// A sequence over time: observed queries, segments of every layer, recent tokens; append, rollback, fork, save.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <span>
#include <vector>

#include "cluster/cluster.h"
#include "core/options.h"
#include "core/team.h"
#include "core/view.h"
#include "decode/decode.h"

namespace tactic {

struct SequenceConfig {
  int layers = 0;
  Shape shape;             // of every layer
  AttentionParams params;  // sink_logits: null here; given per call
  Rotary rotary;           // of every layer
  Options options;
};

// What update() did.
struct UpdateReport {
  std::int64_t clustered = 0;  // tokens that joined segments in this call
  double seconds = 0;          // the pause
};

// The index of one sequence. K and V stay the caller's and come as views with each call; the sequence remembers token numbers
// only. Not thread safe: one call at a time. Copyable: a fork shares all segments (they are immutable).
class Sequence {
 public:
  explicit Sequence(SequenceConfig config);  // throws Error(invalid_argument)

  const SequenceConfig& config() const { return config_; }
  // Changes everything that needs no reclustering (method full/tactic choice switches, mass, ...). Metric, cluster size,
  // iterations, centroid type, segment length and method paper <-> tactic drop the segments.
  void set_options(const Options& options);
  void set_rotary(const Rotary& rotary) { config_.rotary = rotary; }

  // Queries of tokens of the prompt or of a step, as attended (post-RoPE, unscaled): q [tokens, q_heads, head_dim] by strides
  // in floats. They shape the metric (last 128 tokens) and probe the heads (promise).
  void observe(int layer, const float* q, int tokens, std::int64_t token_stride, std::int64_t head_stride);

  // Clusters what is due in a layer: the prompt when its tokens are there (all of tokens [sink, kv.tokens - recent)), later one
  // segment of recluster_tokens a call while so many have gathered. Call before attend(); cheap when nothing is due. When
  // `may_recluster` is false, a further segment is left for a later call (spread the pauses: one layer a step).
  UpdateReport update(Team& team, Workspace& workspace, int layer, const KvView& kv, bool may_recluster);
  // Tokens of a layer that an update() would cluster now.
  std::int64_t due(int layer, std::int64_t tokens) const;

  // Attention of one query row of `layer` over kv.tokens tokens (see decode_step). mass: P of this step; 0: the options'.
  Status attend(Team& team, Workspace& workspace, int layer, const float* q, const KvView& kv, const float* sink_logits,
                float* out, float* lse, StepReport* report, float mass = 0) const;

  // Rolls back to `tokens` tokens: segments that reach past it go; their tokens below it count as recent. Where memory for the
  // shorter tables is missing, here and in invalidate(), a layer loses all its segments: the next update() clusters it anew.
  void truncate(std::int64_t tokens);
  // Tokens [first, last) changed or vanished: segments that overlap them go, and, since segments are contiguous, all later ones.
  void invalidate(std::int64_t first, std::int64_t last);
  void clear();  // forgets segments and queries

  const LayerIndex& layer(int layer) const { return layers_[static_cast<std::size_t>(layer)].index; }
  std::size_t index_bytes() const;

  // The index as bytes (see docs/index-format.md): header with version and shape, observed moments, segments, checksum.
  // load() throws Error(corrupt) and leaves the sequence as it was when the data is damaged or of another shape.
  void save(std::ostream& out) const;
  void load(std::istream& in);

  // Queries that probe the heads (promise): the newest kProbes of every kProbeSpacing-th observed token. estimation.md 6: five.
  static constexpr int kProbes = 5;
  static constexpr int kProbeSpacing = 16;

 private:
  struct LayerState {
    LayerIndex index;
    std::vector<QueryMoment> moments;  // [kv_heads]
    std::vector<float> probes;         // [kProbes, q_heads, head_dim] ring
    std::int64_t observed = 0;         // tokens
    bool probed = false;
  };
  void cluster(Team& team, LayerState& state, const KvView& kv, std::int64_t waiting);
  static void drop_segments_from(LayerState& layer, std::size_t keep);

  SequenceConfig config_;
  std::vector<LayerState> layers_;
};

}  // namespace tactic
