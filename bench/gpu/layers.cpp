// A layer's decode step, dense and by Tactic, whole and by stage, at wanted shares and at wanted quality.
#include <cmath>
#include <cstdio>
#include <string>

#include "limits.h"
#include "session.h"
#include "synthetic.h"
#include "tactic_layers.h"

namespace tactic::bench::gpu {
namespace {

// Tokens that the paper's Table 5 gives for Llama-3.1-8B: the least and the most over its tasks.
std::string paper_range(std::int64_t context, double mass) {
  struct Range {
    std::int64_t context;
    int least75, most75, least90, most90;
  };
  constexpr Range table[] = {{16384, 118, 547, 731, 1769},
                             {32768, 253, 1092, 1413, 3036},
                             {65536, 269, 1662, 2028, 4830},
                             {98304, 404, 3417, 3068, 8147}};
  const Range* nearest = table;
  for (const Range& range : table) {
    if (std::abs(range.context - context) <= std::abs(nearest->context - context)) nearest = &range;
  }
  const bool high = mass > 0.825;
  return "paper at " + std::to_string(nearest->context / 1024) + "K, P=" + (high ? "90%: " : "75%: ") +
         std::to_string(high ? nearest->least90 : nearest->least75) + " to " +
         std::to_string(high ? nearest->most90 : nearest->most75);
}

// Layers of one case under one pipeline, measured.
class LayerBench {
 public:
  LayerBench(const Session& session, const Case& c, const SyntheticQueries& queries, const std::string& method, int cluster_size)
      : session_(session), c_(c), method_(method), layers_(c, queries, pipeline(method, 0.9, cluster_size)) {
    DeviceArray<float> metrics;
    const bool l2 = layers_.options().metric == Metric::l2;
    if (!l2) metrics = query_metrics(c, queries, layers_.options().shrinkage);
    Row row = c.row("clustering", method + " size " + std::to_string(cluster_size));
    row.times.median = row.times.p10 = row.times.p90 = layers_.cluster(l2 ? nullptr : &metrics, stream());
    char note[120];
    std::snprintf(note, sizeof note, "index %.1f MB a layer, %.1f%% of K and V", layers_.index_bytes() / 1e6,
                  100 * layers_.index_bytes() / c.layer_bytes());
    row.note = note;
    session.results.add(row);
  }

  TacticLayers& layers() { return layers_; }
  cudaStream_t stream() const { return session_.timer.stream(); }

  void dense() {
    Row row = c_.row("tactic dense", "");
    row.times = session_.timer(c_.layers, [&](int layer, cudaStream_t s) { layers_.dense(layer, s); });
    row.bytes = c_.layer_bytes();
    session_.results.add(row);
  }

  // Whole step, select and attend alone, the bare gather of the listed rows.
  void step(const std::string& variant) {
    const TacticLayers::Choice choice = layers_.choose(stream(), true);
    const double error = layers_.error(stream());
    const double rows = (choice.share * static_cast<double>(c_.context) + kSinkTokens + kRecentTokens) * c_.batch * c_.kv_heads;
    const double kv_bytes = rows * 2 * static_cast<double>(c_.row_bytes());
    char note[240];
    std::snprintf(note, sizeof note, "%.0f tokens a KV head (%.1f%% to %.1f%%; %s), %.0f means; status %u",
                  choice.share * static_cast<double>(c_.context), 100 * choice.least, 100 * choice.most,
                  paper_range(c_.context, static_cast<double>(layers_.options().mass)).c_str(), choice.represented,
                  layers_.status());
    Row row = c_.row("tactic step", variant);
    row.share = choice.share;
    row.error = std::to_string(error);
    row.note = note;
    row.times = session_.timer(c_.layers, [&](int layer, cudaStream_t s) { layers_.step(layer, s); });
    row.bytes = kv_bytes + layers_.index_step_bytes();
    session_.results.add(row);
    row.note.clear();
    row.what = "tactic select";
    row.times = session_.timer(c_.layers, [&](int layer, cudaStream_t s) { layers_.select(layer, s); });
    row.bytes = layers_.index_step_bytes();
    session_.results.add(row);
    row.what = "tactic attend";
    row.times = session_.timer(c_.layers, [&](int layer, cudaStream_t s) { layers_.attend(layer, s); });
    row.bytes = kv_bytes;
    session_.results.add(row);
    Row gather = gather_limit(session_.timer, c_, choice.rows.numbers);
    gather.share = choice.share, gather.note = "the rows of " + variant;
    session_.results.add(gather);
    add_floor(variant, choice);
  }

 private:
  void add_floor(const std::string& variant, const TacticLayers::Choice& choice) {
    if (method_ != "tactic" || (c_.head_dim != 64 && c_.head_dim != 128) || c_.group() > 8) return;  // no step is one kernel
    std::vector<const void*> centroids;
    for (int layer = 0; layer < c_.layers; ++layer) centroids.push_back(layers_.storage(layer).index().centroid8);
    const DeviceIndex& index = layers_.storage(0).index();
    Row row = step_floor(session_.timer, c_, choice.rows, centroids, static_cast<std::size_t>(index.capacity * c_.head_dim));
    if (row.layers == 0) return;  // more KV heads than thread-block clusters
    row.share = choice.share, row.note = "the rows of " + variant;
    session_.results.add(row);
  }

  const Session& session_;
  const Case& c_;
  std::string method_;
  TacticLayers layers_;
};

// Sets the least mass at which this pipeline's output errs by no more than `wanted`: bisection, error falls with mass.
double match_error(TacticLayers& layers, double wanted, cudaStream_t stream) {
  double low = 0.3, high = 0.995;
  Options options = layers.options();
  const auto set = [&](double mass) {
    options.mass = static_cast<float>(mass);
    layers.set_options(options);
  };
  for (int trial = 0; trial < 11; ++trial) {
    const double middle = (low + high) / 2;
    set(middle);
    (layers.error(stream) > wanted ? low : high) = middle;
  }
  set(high);
  return high;
}

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g%%", 100 * share);
  return text;
}

constexpr int kPaperClusterSize = 16;  // of its experiments (5.1)

void measure_case(const Session& session, const Case& c, int cluster_size) {
  const SyntheticQueries queries = fill_synthetic(c, {}, 1);
  double paper_error = 0;
  bool dense_done = false;
  for (const std::string& method : {std::string("paper"), std::string("tactic"), std::string("tactic mass")}) {
    bool wanted = false;
    for (const std::string& name : session.settings.methods) wanted = wanted || name == method;
    if (!wanted) continue;
    const int tokens = method == "paper" ? kPaperClusterSize : cluster_size;
    const std::string size = ", size " + std::to_string(tokens);
    LayerBench bench(session, c, queries, method, tokens);
    if (!dense_done) bench.dense();
    dense_done = true;
    for (const double mass : session.settings.masses) {
      Options options = bench.layers().options();
      options.mass = static_cast<float>(mass);
      bench.layers().set_options(options);
      bench.step(method + " P=" + percent(mass) + size);
      if (method == "paper" && mass == session.settings.masses.front()) paper_error = bench.layers().error(bench.stream());
    }
    if (method != "paper" && paper_error > 0) {
      const double mass = match_error(bench.layers(), paper_error, bench.stream());
      bench.step(method + " equal to paper, P=" + percent(mass) + size);
    }
    if (method == "paper") continue;
    Options options = bench.layers().options();
    options.mass = static_cast<float>(session.settings.masses.front());
    bench.layers().set_options(options);
    for (const double share : session.settings.shares) {
      bench.layers().steer(share, bench.stream());
      bench.step(method + " at " + percent(share) + size + ", P=" + percent(static_cast<double>(bench.layers().options().mass)));
    }
  }
}

}  // namespace

void measure_layers(const Session& session) {
  const Pool pool(session.settings.pool_gigabytes * 1e9);
  for (const Heads& heads : session.settings.shapes) {
    for (const Cell& cell : session.settings.cells) {
      Case c = pool.cut(heads, cell);
      for (const int size : session.settings.cluster_sizes) measure_case(session, c, size);
    }
  }
}

}  // namespace tactic::bench::gpu
