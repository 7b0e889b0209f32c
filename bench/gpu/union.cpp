// Reading a KV head's rows once for its query heads against once for each of them (paper 4.5 and Fig. 11).
//
// Each for itself, the query heads are sequences of a larger batch: group 1, with block tables (one block a sequence) that lead
// to the same K and V, and copies of the index. Both ways go through block tables, select and attend are timed apart.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "attend/cuda.h"
#include "select/cuda.h"
#include "session.h"
#include "synthetic.h"
#include "tactic_layers.h"

namespace tactic::bench::gpu {
namespace {

class Way {
 public:
  // heads: query heads that share a list, group or 1.
  Way(const Case& c, const TacticLayers& layers, const SyntheticQueries& queries, int heads)
      : c_(c), heads_(heads), copies_(c.group() / heads), sequences_(c.batch * copies_), options_(layers.options()) {
    const auto sequences = static_cast<std::size_t>(sequences_);
    std::vector<std::int32_t> table, lengths;
    for (int s = 0; s < sequences_; ++s) table.push_back(s / copies_), lengths.push_back(static_cast<std::int32_t>(c.context));
    table_ = DeviceArray<std::int32_t>(sequences), lengths_ = DeviceArray<std::int32_t>(sequences);
    table_.copy_from(table), lengths_.copy_from(lengths);
    status_ = DeviceArray<std::uint32_t>(sequences);
    check(cudaMemset(status_.data(), 0, sequences * 4), "cudaMemset");
    const std::int64_t clustered = c.context - kSinkTokens - kRecentTokens;
    for (int layer = 0; layer < c.layers; ++layer) {
      indexes_.emplace_back(sequences_, c.kv_heads, c.head_dim, static_cast<int>(clustered / options_.cluster_size + 1),
                            clustered, options_.int8_centroids);
      for (int s = 0; s < sequences_; ++s) indexes_.back().copy_sequence(layers.storage(layer), s / copies_, s);
      kv_.push_back(layers.kv(layer));
      DeviceKv& kv = kv_.back();
      kv.k.block_stride = kv.k.sequence_stride, kv.v.block_stride = kv.v.sequence_stride;
      kv.sequences = sequences_, kv.lengths = lengths_.data();
      kv.block_table = table_.data(), kv.max_blocks = 1, kv.block_count = c.batch;
      kv.block_size = static_cast<std::int32_t>(c.context);
    }
    scale_ = layers.query(0).scale;
    arrange(queries);
    out_ = DeviceArray<float>(static_cast<std::size_t>(c.batch * c.q_heads * c.head_dim));
    const DeviceIndex& index = indexes_[0].index();
    select_bytes_ = (cuda::select_scratch_bytes(query(0), kv_[0], index, options_) + 255) / 256 * 256;
    select_ = DeviceArray<std::byte>(select_bytes_ * static_cast<std::size_t>(c.layers));
    check(cudaMemset(select_.data(), 0, select_.size()), "cudaMemset");
    attend_ = DeviceArray<std::byte>(cuda::attend_scratch_bytes(query(0), kv_[0], lists(0)));
    check(cudaMemset(attend_.data(), 0, attend_.size()), "cudaMemset");
  }

  void select(int layer, cudaStream_t stream) {
    cuda::select(query(layer), kv_[at(layer)], indexes_[at(layer)].index(), options_, lists(layer), status_.data(),
                 scratch(layer), stream);
  }
  void attend(int layer, cudaStream_t stream) {
    const DeviceOutput output{out_.data(), DeviceType::f32, std::int64_t{c_.kv_heads} * heads_ * c_.head_dim * 4, nullptr};
    cuda::attend_lists(query(layer), kv_[at(layer)], indexes_[at(layer)].index(), lists(layer), output, status_.data(),
                       attend_.data(), stream);
  }
  // Rows listed in a layer and sequence of the batch, all lists together.
  double listed(int layer) {
    const DeviceLists l = lists(layer);
    std::vector<std::int32_t> counts(static_cast<std::size_t>(sequences_ * c_.kv_heads * l.pieces));
    check(cudaMemcpy(counts.data(), l.token_count, counts.size() * 4, cudaMemcpyDeviceToHost), "copy of counts");
    double sum = 0;
    for (const std::int32_t count : counts) sum += count;
    return sum / c_.batch;
  }

 private:
  static std::size_t at(int layer) { return static_cast<std::size_t>(layer); }
  void* scratch(int layer) { return select_.data() + at(layer) * select_bytes_; }
  DeviceLists lists(int layer) {
    return cuda::select_lists(query(layer), kv_[at(layer)], indexes_[at(layer)].index(), options_, scratch(layer));
  }
  DeviceQuery query(int layer) const {
    DeviceQuery q;
    q.q = q_.data() + std::int64_t{layer} * c_.batch * c_.q_heads * c_.head_dim;
    q.sequence_stride = c_.kv_heads * heads_ * c_.row_bytes();
    q.shape = {c_.kv_heads * heads_, c_.kv_heads, c_.head_dim, c_.head_dim};
    q.scale = scale_;
    return q;
  }
  // [layers, batch, kv_heads, group, d] becomes [layers, batch, copies, kv_heads, heads, d].
  void arrange(const SyntheticQueries& queries) {
    const std::vector<std::uint16_t> from = queries.steps.to_host();
    std::vector<std::uint16_t> to;
    for (int outer = 0; outer < c_.layers * c_.batch; ++outer) {
      for (int copy = 0; copy < copies_; ++copy) {
        for (int h = 0; h < c_.kv_heads; ++h) {
          const auto first = from.begin() + (std::ptrdiff_t{outer} * c_.q_heads + h * c_.group() + copy * heads_) * c_.head_dim;
          to.insert(to.end(), first, first + std::ptrdiff_t{heads_} * c_.head_dim);
        }
      }
    }
    q_ = DeviceArray<std::uint16_t>(to.size());
    q_.copy_from(to);
  }

  const Case& c_;
  int heads_, copies_, sequences_;
  Options options_;
  float scale_ = 0;
  std::vector<IndexStorage> indexes_;
  std::vector<DeviceKv> kv_;
  std::size_t select_bytes_ = 0;
  DeviceArray<std::int32_t> table_, lengths_;
  DeviceArray<std::uint32_t> status_;
  DeviceArray<std::uint16_t> q_;
  DeviceArray<float> out_;
  DeviceArray<std::byte> select_, attend_;
};

void measure_case(const Session& session, const Case& c, const std::string& method, double mass) {
  const SyntheticQueries queries = fill_synthetic(c, {}, 1);
  const Options options = pipeline(method, mass, session.settings.cluster_sizes.front());
  TacticLayers layers(c, queries, options);
  DeviceArray<float> metrics;
  if (options.metric == Metric::query) metrics = query_metrics(c, queries, options.shrinkage);
  layers.cluster(options.metric == Metric::query ? &metrics : nullptr, session.timer.stream());
  for (const int heads : {c.group(), 1}) {
    Way way(c, layers, queries, heads);
    char variant[80];
    std::snprintf(variant, sizeof variant, "%s P=%.3g%%, %s", method.c_str(), 100 * mass,
                  heads == 1 ? "each query head" : "union");
    Row row = c.row("union select", variant);
    row.times = session.timer(c.layers, [&](int layer, cudaStream_t s) { way.select(layer, s); });
    session.results.add(row);
    double rows = 0;
    for (int layer = 0; layer < c.layers; ++layer) rows += way.listed(layer) / c.layers;
    row.what = "union attend";
    row.share = rows / static_cast<double>(c.context * c.kv_heads);
    row.note = "rows read / context, all lists of a KV head together";
    row.times = session.timer(c.layers, [&](int layer, cudaStream_t s) { way.attend(layer, s); });
    session.results.add(row);
  }
}

}  // namespace

void measure_union(const Session& session) {
  const Pool pool(session.settings.pool_gigabytes * 1e9);
  for (const Heads& heads : session.settings.shapes) {
    for (const Cell& cell : session.settings.cells) {
      Case c = pool.cut(heads, cell);
      for (const std::string& method : session.settings.methods) {
        for (const double mass : session.settings.masses) measure_case(session, c, method, mass);
      }
    }
  }
}

}  // namespace tactic::bench::gpu
