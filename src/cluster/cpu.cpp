// build_segment() on CPU threads: KV heads in batches that fit the scratch, each clustered and finished by the whole team.
#include <cassert>

#include "cluster/batch.h"
#include "cluster/segment.h"

namespace tactic {
namespace {

// KV heads are worked on together (fewer barriers, more to share out) up to this much scratch: a small segment's keys then stay
// in a server's L3, and a 128K context of d = 128 (84 MB a head) goes head by head.
constexpr std::size_t kScratchBytes = std::size_t{64} << 20;
constexpr int kMaxPieces = 16;        // times the heads of a batch: shares for 64 workers
constexpr int kTokensOfPiece = 1024;  // a piece's d^2 sums cost as much as about 100 of its tokens

}  // namespace

int batch_pieces(std::int64_t tokens) {
  return static_cast<int>(std::clamp<std::int64_t>(tokens / kTokensOfPiece, 1, kMaxPieces));
}

std::size_t batch_head_bytes(std::int64_t tokens, int count, int dim, int pieces) {
  const auto d = static_cast<std::size_t>(dim);
  return static_cast<std::size_t>(tokens) * (4 * d + 16) + static_cast<std::size_t>(count) * (4 * d + 12) +
         static_cast<std::size_t>(pieces) * d * d * 4;
}

Batch::Batch(const KvView& kv_view, std::span<const MetricSpace> head_metrics, const ClusterOptions& cluster_options,
             Segment& target, int capacity, int workers)
    : kv(kv_view),
      metrics(head_metrics),
      options(cluster_options),
      segment(target),
      kernels(cluster_kernels()),
      n(target.last - target.first),
      dim(kv_view.k.dim),
      count(target.heads.front().count),
      drawn(drawn_count(count, cluster_options)),
      pieces(batch_pieces(n)),
      heads(static_cast<std::size_t>(capacity)),
      locals(static_cast<std::size_t>(workers)) {
  const auto tokens = static_cast<std::size_t>(n);
  const auto d = static_cast<std::size_t>(dim);
  const auto c = static_cast<std::size_t>(count);
  const auto panel = static_cast<std::size_t>(kernels.panel);
  const std::size_t columns = (c + panel - 1) / panel * panel;
  for (BatchHead& head : heads) {
    head.y.resize((tokens + kRowPadding) * d);
    std::fill(head.y.end() - static_cast<std::ptrdiff_t>(kRowPadding * d), head.y.end(), 0.0f);
    head.origin.resize(d);
    head.norm.resize(tokens);
    head.score.resize(tokens);
    head.nearest.resize(tokens);
    head.order.resize(tokens);
    head.sizes.resize(c);
    head.cursor.resize(c);
    head.packed.resize(columns * d);
    head.packed.fill(0);
    head.bias.resize(columns);
    head.products.resize(static_cast<std::size_t>(pieces) * d * d);
  }
  for (BatchLocal& local : locals) {
    local.rows.resize(static_cast<std::size_t>(kBlockRows + kRowPadding) * d);
    local.rows.fill(0);
    local.mean.resize(std::max(d, static_cast<std::size_t>(kv.v.dim)));
    local.partial.resize(local.mean.size());
    local.mean_k.resize(d);
    local.pointers.resize(kBlockRows);
  }
}

std::shared_ptr<const Segment> build_segment(Team& team, const KvView& kv, std::int64_t first, std::int64_t last,
                                             std::span<const MetricSpace> metrics, const ClusterOptions& options) {
  assert(first >= 0 && first < last && last <= kv.tokens && metrics.size() == static_cast<std::size_t>(kv.kv_heads));
  assert(options.cluster_size >= 1 && options.iterations >= 0);
  assert(options.outlier_share >= 0 && options.outlier_share <= 0.5f);
  auto segment = allocate_segment(kv, first, last, options);
  const std::int64_t n = last - first;
  const std::size_t bytes = batch_head_bytes(n, segment->heads.front().count, kv.k.dim, batch_pieces(n));
  const int capacity = static_cast<int>(std::clamp<std::size_t>(kScratchBytes / bytes, 1, static_cast<std::size_t>(kv.kv_heads)));
  Batch batch(kv, metrics, options, *segment, capacity, team.size());
  for (int head = 0; head < kv.kv_heads; head += capacity) {
    batch.first_head = head;
    batch.active = std::min(capacity, kv.kv_heads - head);
    batch.next_piece = 0;
    team.run([&](Worker& worker) {
      if (cluster_keys(batch, worker)) finish_clusters(batch, worker);
    });
    if (batch.failed) throw_non_finite(kv, first, last);
  }
  return segment;
}

}  // namespace tactic
