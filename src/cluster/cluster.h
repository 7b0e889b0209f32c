// Clustering: from the keys of a range of tokens to a segment (paper 4.2; estimation.md 2 and 4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "core/options.h"
#include "core/team.h"
#include "core/types.h"
#include "core/view.h"

namespace tactic {

// ---- the query metric ------------------------------------------------------------------------------------------------

// Rotary position embedding of the model, as far as the metric needs it: pair p turns by frequency[p] radians a position.
struct Rotary {
  enum class Layout : std::int32_t { unknown = 0, none = 1, interleaved = 2, halves = 3 };  // pairs (2p, 2p+1) or (p, p + pairs)
  Layout layout = Layout::unknown;
  std::vector<float> frequency;  // [pairs]; dims beyond 2 * pairs are not turned
};

// Second moment of recent queries of one KV head's group: the mean of q q^T over the last kWindow tokens and their heads, q as
// the attention sees it (post-RoPE, unscaled). A call with kWindow tokens or more replaces what was seen before; shorter ones
// displace it in equal parts, so that it fades exponentially. Tokens with a NaN or an infinity in q are passed over.
class QueryMoment {
 public:
  explicit QueryMoment(int head_dim = 0) : dim_(head_dim), sum_(static_cast<std::size_t>(head_dim) * head_dim, 0.0) {}
  // q: `tokens` tokens oldest first; token i, query head g at q + i * token_stride + g * head_stride (strides in floats).
  // Only the last kWindow tokens count. Cost: min(tokens, kWindow) * group * d^2 / 2 multiply-adds, in bunches of kBunch tokens:
  // a decode step mostly copies q. Allocates in the first call (and when the group grows) only.
  void add(const float* q, int tokens, int group, std::int64_t token_stride, std::int64_t head_stride);
  bool empty() const { return weight_ == 0 && pending_tokens_ == 0; }
  int dim() const { return dim_; }
  // [d, d], symmetric: the mean. Zero when empty.
  std::vector<double> mean() const;
  double weight() const;                // tokens seen, at most kWindow
  std::span<const double> sum() const;  // [d, d]; the lower triangle is valid: sum over tokens of the mean over the group
  void restore(std::span<const double> sum, double weight);

  static constexpr int kWindow = 128;  // tokens; estimation.md 4: 32 steps 878 units, 8 steps 930, 2 steps 1118
  static constexpr int kBunch = 32;    // tokens: one pass over the d^2 doubles of the sum serves so many

 private:
  void fold() const;  // pending tokens into the sum
  void forget(int arriving) const;

  int dim_;
  mutable std::vector<double> sum_;
  mutable double weight_ = 0;
  mutable std::vector<float> pending_;  // [rows, d] queries / sqrt(group)
  mutable int pending_tokens_ = 0;
};

// The space of k-means: y = L^T k, M = L L^T. kind l2 has no factor.
struct MetricSpace {
  Metric kind = Metric::l2;
  int dim = 0;
  std::vector<float> factor;  // query: L [d, d] row-major, lower triangular; diagonal: [d] square roots of the diagonal
};

// M = (1 - shrinkage) moment + shrinkage tr/d I, for `query` with the moment averaged over RoPE turns by 0 .. kRotarySpan
// positions. `diagonal` keeps M's diagonal, equal inside each rotary pair, which is what turning leaves of it; where the layout
// is unknown, equal inside the sets of four dims that are closed under both layouts. Falls back to `diagonal` where the layout
// is unknown and to `l2` where no queries were observed. Cost: d^3 / 3.
MetricSpace make_metric(Metric wanted, const QueryMoment& moment, const Rotary& rotary, float shrinkage);
constexpr int kRotarySpan = 4096;  // positions; estimation.md 4: with it a metric 4300 tokens old costs 674 tokens instead of 860

// The two steps of it, [d, d] symmetric row-major, in place; cholesky leaves L in the lower triangle and zeros above.
void average_over_turns(std::span<double> moment, int dim, const Rotary& rotary, int span);
void cholesky(std::span<double> matrix, int dim);

// ---- segments --------------------------------------------------------------------------------------------------------

// The clusters of one KV head over a segment's tokens. Immutable once built.
struct HeadClusters {
  int count = 0;                     // C, all non-empty
  Buffer<std::int32_t> tokens;       // [n] token numbers in the sequence, in cluster order, ascending inside a cluster
  Buffer<std::int32_t> begin;        // [C + 1] into tokens
  Buffer<std::int8_t> centroid8;     // [C, head_dim] mean of K / scale, round to nearest; empty with f16 centroids
  Buffer<float> centroid_scale;      // [C]
  Buffer<std::uint16_t> centroid16;  // [C, head_dim] mean of K in f16; empty with int8 centroids
  Buffer<float> spread;              // [C] mean |y - mean y|^2 over the cluster (k-means' squared distance)
  Buffer<std::int8_t> mean_v;        // [C, v_head_dim] mean of V / scale
  Buffer<float> mean_v_scale;        // [C]
  Buffer<float> covariance;          // [d, d] S: pooled covariance of k - centroid(k), in key space
  float mean_spread = 0;             // t = tr(M S): token mean of the spread

  int size(int c) const { return begin[c + 1] - begin[c]; }
};

// Tokens [first, last) of a sequence in one layer, clustered. Shared between forks of a sequence.
struct Segment {
  std::int64_t first = 0;
  std::int64_t last = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  std::vector<HeadClusters> heads;  // [kv_heads]

  std::size_t bytes() const;  // of all arrays, owned
};

struct ClusterOptions {
  int cluster_size = 32;
  int iterations = 3;  // at most; stops early when no token moved
  bool int8_centroids = true;
  std::uint64_t seed = 0;
  float outlier_share = 0;  // of the clusters, 0 .. 0.5: not drawn, but placed on far tokens before the last assignment
};

// Clusters tokens [first, last) of every KV head. metrics: [kv_heads]. Deterministic for a seed and independent of the
// number of workers. NaN or infinity in K or V throws Error(non_finite) naming the token. last - first >= 1.
// C = max(1, round(n / cluster_size)); a cluster that loses its last token takes the one farthest from its centroid.
// The floor(outlier_share * C) last clusters are empty until the last assignment but one has been made: each takes a token by
// that rule then, the centroids are updated, and the last assignment gives each the tokens like its own.
// Cost: (iterations + 1) * n * n / cluster_size * head_dim multiply-adds a KV head.
std::shared_ptr<const Segment> build_segment(Team& team, const KvView& kv, std::int64_t first, std::int64_t last,
                                             std::span<const MetricSpace> metrics, const ClusterOptions& options);

// The same in scalar code with double sums: the oracle. Same random start; ties to the lowest cluster.
namespace reference {
std::shared_ptr<const Segment> build_segment(const KvView& kv, std::int64_t first, std::int64_t last,
                                             std::span<const MetricSpace> metrics, const ClusterOptions& options);
}  // namespace reference

}  // namespace tactic
