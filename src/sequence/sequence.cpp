#include "sequence/sequence.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <string>

#include "core/error.h"
#include "decode/promise.h"

namespace tactic {
namespace {

bool needs_reclustering(const Options& a, const Options& b) {
  return (a.method == Method::paper) != (b.method == Method::paper) || a.cluster_size != b.cluster_size ||
         a.iterations != b.iterations || a.segment_tokens != b.segment_tokens || a.metric != b.metric ||
         a.shrinkage != b.shrinkage || a.int8_centroids != b.int8_centroids || a.sink_tokens != b.sink_tokens ||
         a.seed != b.seed || a.outlier_share != b.outlier_share;
}

}  // namespace

Sequence::Sequence(SequenceConfig config) : config_(std::move(config)) {
  validate(config_.shape);
  validate(config_.options);
  if (config_.layers < 1 || config_.layers > 4096) {
    throw Error(Status::invalid_argument, "layers is " + std::to_string(config_.layers) + ", must be in [1, 4096]");
  }
  clear();
}

void Sequence::clear() {
  std::vector<LayerState> fresh(static_cast<std::size_t>(config_.layers));
  for (LayerState& layer : fresh) {
    layer.moments.assign(static_cast<std::size_t>(config_.shape.kv_heads), QueryMoment(config_.shape.head_dim));
  }
  layers_ = std::move(fresh);
}

void Sequence::set_options(const Options& options) {
  validate(options);
  if (needs_reclustering(config_.options, options)) {
    for (LayerState& layer : layers_) drop_segments_from(layer, 0);
  }
  // A margin was probed for one mass and one way of choosing.
  if (!options.promise || options.mass != config_.options.mass) {
    for (LayerState& layer : layers_) {
      layer.index.margin.clear();
      layer.probed = false;
    }
  }
  config_.options = options;
}

void Sequence::observe(int layer, const float* q, int tokens, std::int64_t token_stride, std::int64_t head_stride) {
  LayerState& state = layers_[static_cast<std::size_t>(layer)];
  const Shape& shape = config_.shape;
  const auto row = static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.head_dim);
  state.probes.resize(kProbes * row);
  for (int h = 0; h < shape.kv_heads; ++h) {
    state.moments[static_cast<std::size_t>(h)].add(q + h * shape.group() * head_stride, tokens, shape.group(), token_stride,
                                                   head_stride);
  }
  // Probes: the newest tokens, kProbeSpacing apart, so that one call with a long prompt and many calls with one token agree.
  const int first = std::max(0, tokens - kProbes * kProbeSpacing);
  for (int t = first; t < tokens; ++t) {
    const std::int64_t number = state.observed + t;
    if (number % kProbeSpacing != 0) continue;
    float* to = state.probes.data() + static_cast<std::size_t>(number / kProbeSpacing % kProbes) * row;
    for (int head = 0; head < shape.q_heads; ++head) {
      std::copy_n(q + t * token_stride + head * head_stride, shape.head_dim,
                  to + static_cast<std::ptrdiff_t>(head) * shape.head_dim);
    }
  }
  state.observed += tokens;
}

std::int64_t Sequence::due(int layer, std::int64_t tokens) const {
  const Options& options = config_.options;
  if (options.method == Method::full) return 0;
  const LayerIndex& index = layers_[static_cast<std::size_t>(layer)].index;
  const bool prompt = index.segments.empty();
  const std::int64_t first = prompt ? options.sink_tokens : index.last();
  const std::int64_t waiting = tokens - options.recent_tokens - first;
  if (prompt) return tokens >= options.min_context && waiting >= options.cluster_size ? waiting : 0;
  // One segment a call, however many tokens a long absence brought: the pause is bounded.
  return waiting >= options.recluster_tokens ? options.recluster_tokens : 0;
}

UpdateReport Sequence::update(Team& team, Workspace& workspace, int layer, const KvView& kv, bool may_recluster) {
  UpdateReport report;
  LayerState& state = layers_[static_cast<std::size_t>(layer)];
  const std::int64_t waiting = due(layer, kv.tokens);
  const bool probe = config_.options.promise && config_.options.method == Method::tactic && !state.probed;
  const bool prompt = state.index.segments.empty();
  if (waiting == 0 && !(probe && !prompt)) return report;
  if (!prompt && waiting > 0 && !may_recluster) return report;

  const auto start = std::chrono::steady_clock::now();
  if (waiting > 0) {
    cluster(team, state, kv, waiting);
    report.clustered = waiting;
  }
  if (probe) {
    const auto probes = static_cast<int>(std::min<std::int64_t>(kProbes, state.observed / kProbeSpacing));
    const std::vector<float> queries = state.probes;
    state.index.margin =
        probe_margins(team, workspace, config_.shape, config_.params, {queries.data(), probes}, kv, state.index, config_.options);
    state.probed = true;
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

void Sequence::cluster(Team& team, LayerState& state, const KvView& kv, std::int64_t waiting) {
  const Options& options = config_.options;
  const Metric wanted = options.method == Method::paper ? Metric::l2 : options.metric;
  std::vector<MetricSpace> metrics;
  for (const QueryMoment& moment : state.moments)
    metrics.push_back(make_metric(wanted, moment, config_.rotary, options.shrinkage));
  const ClusterOptions how{options.cluster_size, options.iterations, options.int8_centroids, options.seed, options.outlier_share};
  const std::int64_t first = state.index.segments.empty() ? options.sink_tokens : state.index.last();
  // Equal pieces near the wanted length, so that the last one is not a scrap.
  const std::int64_t pieces = options.segment_tokens == 0
                                  ? 1
                                  : std::max<std::int64_t>(1, (waiting + options.segment_tokens / 2) / options.segment_tokens);
  std::vector<std::shared_ptr<const Segment>> segments = state.index.segments;
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    segments.push_back(
        build_segment(team, kv, first + waiting * piece / pieces, first + waiting * (piece + 1) / pieces, metrics, how));
  }
  std::vector<HeadTable> tables = make_tables(segments);
  state.index.segments = std::move(segments);
  state.index.tables = std::move(tables);
}

Status Sequence::attend(Team& team, Workspace& workspace, int layer, const float* q, const KvView& kv, const float* sink_logits,
                        float* out, float* lse, StepReport* report, float mass) const {
  AttentionParams params = config_.params;
  params.sink_logits = sink_logits;
  const LayerIndex& index = layers_[static_cast<std::size_t>(layer)].index;
  // Segments past the view's end would name tokens that it does not have: such a step runs dense.
  const LayerIndex* usable = index.last() <= kv.tokens ? &index : nullptr;
  Options options = config_.options;
  if (mass != 0) options.mass = mass;
  return decode_step(team, workspace, {q, config_.shape, params}, kv, usable, options, out, lse, report);
}

void Sequence::drop_segments_from(LayerState& layer, std::size_t keep) {
  LayerIndex& index = layer.index;
  if (index.segments.size() <= keep) return;
  index.segments.resize(keep);
  try {
    index.tables = make_tables(index.segments);
  } catch (const std::bad_alloc&) {  // the caller's tokens are gone all the same
    index.segments.clear();
    index.tables.clear();
  }
  if (!index.segments.empty()) return;
  index.margin.clear();
  layer.probed = false;
}

void Sequence::truncate(std::int64_t tokens) {
  for (LayerState& layer : layers_) {
    std::size_t keep = 0;
    while (keep < layer.index.segments.size() && layer.index.segments[keep]->last <= tokens) ++keep;
    drop_segments_from(layer, keep);
  }
}

void Sequence::invalidate(std::int64_t first, std::int64_t last) {
  if (first >= last) return;
  for (LayerState& layer : layers_) {
    std::size_t keep = 0;
    while (keep < layer.index.segments.size() &&
           (layer.index.segments[keep]->last <= first || layer.index.segments[keep]->first >= last))
      ++keep;
    drop_segments_from(layer, keep);
  }
}

std::size_t Sequence::index_bytes() const {
  std::size_t bytes = 0;
  for (const LayerState& layer : layers_) {
    for (const auto& segment : layer.index.segments) bytes += segment->bytes();
    for (const HeadTable& table : layer.index.tables) {
      bytes += table.size.bytes() + table.spread.bytes() + table.part_of.bytes() + table.column_of.bytes() +
               table.covariance16.bytes() + table.covariance_unit.bytes() + table.packed8.bytes() + table.centroid_scale.bytes() +
               table.packed16.bytes() + table.tokens.capacity() * sizeof(table.tokens[0]);
    }
  }
  return bytes;
}

}  // namespace tactic
