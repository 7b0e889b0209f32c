// Whole decode steps of a layer against our own dense kernel and against the memory's limits, layers in rotation so that caches
// are cold.
//
// Synthetic keys lie around topics (one for 64 tokens of context, runs of 8 tokens), as captured keys do around what a text is
// about; queries look at topics of the context, as sharply as it takes to attend the wanted share at P = 0.9. Real ones:
// TACTIC_BENCH_DUMP=FILE (the layout of read_dump), at the share that they have.
//
// Counters: attended share; speedup over dense in the same run; of_target, that over 0.38 / share; of_limit, a bare gather of the
// attended rows plus streaming the metadata, over the step; microseconds by stage.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "bench/limits.h"
#include "core/half.h"
#include "decode/decode.h"
#include "sequence/sequence.h"

namespace tactic::bench {
namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point start) { return std::chrono::duration<double, std::micro>(Clock::now() - start).count(); }

struct Case {
  std::string name;
  Shape shape;
  std::int64_t tokens = 0;
  int layers = 0;
  double share = 0;  // wanted; 0: as it comes
};

// 64 random bits (splitmix64): millions of keys are drawn.
struct Random {
  std::uint64_t state;
  std::uint64_t bits() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Near normal, deviation 1: the sum of four 16-bit uniforms.
  float normal() {
    const std::uint64_t b = bits();
    const auto sum = static_cast<float>((b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48));
    return (sum - 2 * 65535.0f) * (1.7320508f / 65536);
  }
};

// K and V of some layers in llama.cpp's layout [token][kv_head][dim], f16, with their indexes and queries.
class Layers {
 public:
  Layers(const Case& c, Team& team)
      : case_(c), pages_(static_cast<std::size_t>(layer_bytes()) * static_cast<std::size_t>(c.layers), false) {
    fill_synthetic();
    build(team);
  }
  // From a dump: 8 int32 (layers, q_heads, kv_heads, dim, N, T, 0, 0), q f32 [T, layers, q_heads, dim], K f16 [layers, kv_heads,
  // N + T, dim], V likewise.
  Layers(Case& c, const std::string& path, Team& team) : case_(c) {
    read_dump(path);
    c = case_;
    build(team);
  }

  KvView view(int layer) const {
    const std::int64_t row = 2 * case_.shape.head_dim;
    Rows rows{pages_.data() + static_cast<std::int64_t>(layer_bytes()) * layer,
              DType::f16,
              case_.shape.head_dim,
              row * case_.shape.kv_heads,
              row,
              0};
    KvView kv{rows, rows, case_.shape.kv_heads, case_.tokens, nullptr, 1};
    kv.v.data += static_cast<std::int64_t>(layer_bytes()) / 2;
    return kv;
  }
  Query query(int layer, int step) {
    const std::size_t size = static_cast<std::size_t>(case_.shape.q_heads * case_.shape.head_dim);
    return {q_.data() + (static_cast<std::size_t>(layer) * kSteps + static_cast<std::size_t>(step)) * size,
            case_.shape,
            {1 / std::sqrt(static_cast<float>(case_.shape.head_dim)), 0, nullptr}};
  }
  const LayerIndex& index(int layer) const { return indexes_[static_cast<std::size_t>(layer)]; }
  int count() const { return case_.layers; }
  double layer_bytes() const { return 4.0 * case_.shape.kv_heads * case_.shape.head_dim * static_cast<double>(case_.tokens); }
  void scale_queries(float factor) {
    for (float& x : q_) x *= factor;
  }

  static constexpr int kSteps = 8;  // queries of a layer

 private:
  std::byte* at(int layer, bool v, std::int64_t token, int head) {
    const std::int64_t row = 2 * case_.shape.head_dim;
    return pages_.data() + static_cast<std::int64_t>(layer_bytes()) * layer +
           (v ? static_cast<std::int64_t>(layer_bytes()) / 2 : 0) + (token * case_.shape.kv_heads + head) * row;
  }

  void fill_synthetic() {
    Random random{42};
    const Shape& s = case_.shape;
    const auto d = static_cast<std::size_t>(s.head_dim);
    const auto topics = static_cast<std::size_t>(case_.tokens / 64);
    std::vector<float> centers(topics * d);
    q_.resize(static_cast<std::size_t>(case_.layers) * kSteps * static_cast<std::size_t>(s.q_heads) * d);
    for (int layer = 0; layer < case_.layers; ++layer) {
      for (int h = 0; h < s.kv_heads; ++h) {
        for (float& x : centers) x = random.normal();
        std::size_t topic = 0;
        for (std::int64_t t = 0; t < case_.tokens; ++t) {
          if (t % 8 == 0) topic = random.bits() % topics;
          std::byte* k = at(layer, false, t, h);
          std::byte* v = at(layer, true, t, h);
          for (std::size_t i = 0; i < d; ++i) {
            store_element(k, DType::f16, i, 0.8f * centers[topic * d + i] + 0.6f * random.normal());
            store_element(v, DType::f16, i, static_cast<float>(static_cast<int>(i * 7 + topic) % 13) * 0.1f - 0.6f);
          }
        }
        for (int step = 0; step < kSteps; ++step) {
          std::vector<float> shared(d);
          for (int look = 0; look < 3; ++look) {
            const std::size_t at_topic = random.bits() % topics;
            for (std::size_t i = 0; i < d; ++i) shared[i] += 0.4f * centers[at_topic * d + i];
          }
          for (std::size_t i = 0; i < d; ++i) shared[i] += 0.8f * random.normal();
          float* q = q_.data() + ((static_cast<std::size_t>(layer) * kSteps + static_cast<std::size_t>(step)) *
                                      static_cast<std::size_t>(s.q_heads) +
                                  static_cast<std::size_t>(h * s.group())) *
                                     d;
          for (int g = 0; g < s.group(); ++g) {
            for (std::size_t i = 0; i < d; ++i) *q++ = shared[i] + 0.4f * random.normal();
          }
        }
      }
    }
  }

  void read_dump(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::int32_t head[8] = {};
    file.read(reinterpret_cast<char*>(head), sizeof head);
    const int all_layers = head[0];
    case_.shape = {head[1], head[2], head[3], head[3]};
    case_.tokens = head[4];
    case_.layers = std::min(all_layers, 8);
    const std::int64_t rows = head[4] + head[5];
    const auto d = static_cast<std::int64_t>(head[3]);
    const std::int64_t q_row = head[1] * d * 4;
    const std::int64_t keys = 32 + head[5] * all_layers * q_row;
    const std::int64_t plane = head[2] * rows * d * 2;
    pages_ = Pages(static_cast<std::size_t>(layer_bytes()) * static_cast<std::size_t>(case_.layers), false);
    q_.resize(static_cast<std::size_t>(case_.layers * kSteps * head[1]) * static_cast<std::size_t>(d));
    std::vector<char> head_rows(static_cast<std::size_t>(case_.tokens * d * 2));
    for (int layer = 0; layer < case_.layers; ++layer) {
      const int from = layer * all_layers / case_.layers;
      for (int step = 0; step < kSteps; ++step) {
        file.seekg(32 + (static_cast<std::int64_t>(step * 7 % head[5]) * all_layers + from) * q_row);
        file.read(reinterpret_cast<char*>(q_.data()) + (layer * kSteps + step) * q_row, q_row);
      }
      for (int part = 0; part < 2; ++part) {
        for (int h = 0; h < head[2]; ++h) {
          file.seekg(keys + (part * all_layers + from) * plane + h * rows * d * 2);
          file.read(head_rows.data(), static_cast<std::streamsize>(head_rows.size()));
          for (std::int64_t t = 0; t < case_.tokens; ++t)
            std::memcpy(at(layer, part != 0, t, h), head_rows.data() + t * d * 2, static_cast<std::size_t>(d * 2));
        }
      }
    }
    if (!file) throw std::runtime_error(path + ": not a dump");
  }

  // Segments of 8192 tokens: k-means is quadratic in them, and a layer's step only sees their sum.
  void build(Team& team) {
    const Shape& s = case_.shape;
    for (int layer = 0; layer < case_.layers; ++layer) {
      std::vector<MetricSpace> metrics;
      for (int h = 0; h < s.kv_heads; ++h) {
        QueryMoment moment(s.head_dim);
        const Query q = query(layer, 0);
        moment.add(q.q + h * s.group() * s.head_dim, kSteps, s.group(), static_cast<std::int64_t>(s.q_heads) * s.head_dim,
                   s.head_dim);
        metrics.push_back(make_metric(Metric::query, moment, {Rotary::Layout::none, {}}, 0.1f));
      }
      LayerIndex index;
      const std::int64_t last = case_.tokens - 64;
      for (std::int64_t first = 4; first < last;) {
        const std::int64_t end = last - first < 12288 ? last : first + 8192;
        index.segments.push_back(build_segment(team, view(layer), first, end, metrics, {32, 3, true, 1}));
        first = end;
      }
      for (int h = 0; h < s.kv_heads; ++h) index.tables.push_back(make_table(index.segments, h));
      indexes_.push_back(std::move(index));
    }
  }

  Case case_;
  Pages pages_;
  std::vector<float> q_;  // [layers, kSteps, q_heads, head_dim]
  std::vector<LayerIndex> indexes_;
};

class Runner {
 public:
  Runner(Layers& layers, const Case& c) : layers_(layers), case_(c), team_(make_thread_team(0)), workspace_(make_workspace()) {
    out_.resize(static_cast<std::size_t>(c.shape.q_heads * c.shape.v_head_dim));
    attended_.resize(static_cast<std::size_t>(c.shape.kv_heads));
  }
  // One step of the next layer in turn; returns microseconds.
  double step(const Options& options, StepReport& report) {
    const int layer = next_ % layers_.count();
    const int query = next_ / layers_.count() % Layers::kSteps;
    ++next_;
    report.attended = attended_;
    const auto start = Clock::now();
    decode_step(*team_, *workspace_, layers_.query(layer, query), layers_.view(layer), &layers_.index(layer), options,
                out_.data(), nullptr, &report);
    return us_since(start);
  }
  double share() {
    const int steps = layers_.count() * Layers::kSteps;
    double sum = 0;
    Options options;
    for (int i = 0; i < steps; ++i) {
      StepReport report;
      step(options, report);
      for (const std::int64_t n : attended_) sum += static_cast<double>(n);
    }
    return sum / (static_cast<double>(steps) * case_.shape.kv_heads * static_cast<double>(case_.tokens));
  }
  // Sharpens the queries until the wanted share is attended.
  void steer() {
    float factor = 1;
    float step_by = 1.5f;
    bool above = true;
    for (int i = 0; i < 10 && case_.share > 0; ++i) {
      const double now = share();
      if (std::abs(now - case_.share) < 0.02 * case_.share) break;
      const bool over = now > case_.share;
      if (over != above) step_by = std::sqrt(step_by);
      above = over;
      const float by = over ? step_by : 1 / step_by;
      layers_.scale_queries(by);
      factor *= by;
    }
    std::printf("# %s: queries x %.2f\n", case_.name.c_str(), static_cast<double>(factor));
  }
  double dense_us() {
    Options full;
    full.method = Method::full;
    double best = 1e30;
    for (int round = 0; round < 2; ++round) {
      double sum = 0;
      for (int i = 0; i < layers_.count(); ++i) {
        StepReport report;
        sum += step(full, report);
      }
      best = std::min(best, sum / layers_.count());
    }
    return best;
  }
  // Bare gather of what steps attended, and the metadata at streaming speed.
  double limit_us(double metadata_bytes) {
    std::vector<std::vector<std::int32_t>> ids;
    std::vector<Gather> gathers;
    const std::int64_t words = (case_.tokens + 63) / 64;
    std::vector<std::uint64_t> bits(static_cast<std::size_t>(words * case_.shape.kv_heads));
    ids.reserve(static_cast<std::size_t>(layers_.count() * case_.shape.kv_heads));
    for (int layer = 0; layer < layers_.count(); ++layer) {
      StepReport report;
      report.token_bits = bits;
      decode_step(*team_, *workspace_, layers_.query(layer, layer % Layers::kSteps), layers_.view(layer), &layers_.index(layer),
                  Options{}, out_.data(), nullptr, &report);
      gathers.push_back({layers_.view(layer), {}});
      for (int h = 0; h < case_.shape.kv_heads; ++h) {
        std::vector<std::int32_t>& list = ids.emplace_back();
        for (std::int64_t t = 0; t < case_.tokens; ++t) {
          if ((bits[static_cast<std::size_t>(h * words + t / 64)] >> (t % 64) & 1) != 0)
            list.push_back(static_cast<std::int32_t>(t));
        }
        gathers.back().lists.push_back({list.data(), 0, static_cast<std::int64_t>(list.size())});
      }
    }
    const double stream = stream_bandwidth(*team_, std::size_t{1} << 28);
    return bare_gather_seconds(*team_, gathers) * 1e6 + metadata_bytes / (stream * 1e3);
  }
  const Shape& shape() const { return case_.shape; }

 private:
  Layers& layers_;
  const Case& case_;
  std::unique_ptr<Team> team_;
  WorkspacePtr workspace_;
  std::vector<float> out_;
  std::vector<std::int64_t> attended_;
  int next_ = 0;
};

void run_layer(benchmark::State& state, Case c) {
  const auto team = make_thread_team(0);
  const char* dump = std::getenv("TACTIC_BENCH_DUMP");
  Layers layers = c.tokens == 0 ? Layers(c, dump, *team) : Layers(c, *team);
  Runner runner(layers, c);
  runner.steer();
  const double dense = runner.dense_us();
  const double share = runner.share();
  Options options;
  double total = 0, rank = 0, estimate = 0, list = 0, attend = 0, bytes = 0;
  for (auto unused : state) {
    StepReport report;
    const double us = runner.step(options, report);
    state.SetIterationTime(us * 1e-6);
    total += us;
    rank += report.rank_us;
    estimate += report.estimate_us;
    list += report.union_us;
    attend += report.attend_us;
    bytes += report.bytes;
  }
  const auto n = static_cast<double>(state.iterations());
  const double row_pair = 4.0 * c.shape.head_dim;
  const double metadata = bytes / n - share * static_cast<double>(c.tokens) * c.shape.kv_heads * row_pair;
  state.counters["share"] = share;
  state.counters["dense_us"] = dense;
  state.counters["speedup"] = dense / (total / n);
  state.counters["of_target"] = dense / (total / n) * share / 0.38;
  state.counters["of_limit"] = runner.limit_us(metadata) / (total / n);
  state.counters["rank_us"] = rank / n;
  state.counters["estimate_us"] = estimate / n;
  state.counters["union_us"] = list / n;
  state.counters["attend_us"] = attend / n;
}

// The pause of a further segment of 2048 tokens behind a prompt, tables rebuilt: what a decode step that reclusters adds in a
// layer.
void run_recluster(benchmark::State& state, Case c) {
  const auto team = make_thread_team(0);
  const WorkspacePtr workspace = make_workspace();
  Layers layers(c, *team);
  SequenceConfig config;
  config.layers = 1;
  config.shape = c.shape;
  config.params.scale = 1 / std::sqrt(static_cast<float>(c.shape.head_dim));
  config.rotary.layout = Rotary::Layout::none;
  config.options.segment_tokens = 8192;
  Sequence prompt(config);
  prompt.observe(0, layers.query(0, 0).q, Layers::kSteps, static_cast<std::int64_t>(c.shape.q_heads) * c.shape.head_dim,
                 c.shape.head_dim);
  KvView kv = layers.view(0);
  kv.tokens = c.tokens - config.options.recluster_tokens;
  prompt.update(*team, *workspace, 0, kv, true);
  kv.tokens = c.tokens;
  double longest = 0;
  for (auto unused : state) {
    Sequence grown = prompt;
    const UpdateReport report = grown.update(*team, *workspace, 0, kv, true);
    state.SetIterationTime(report.seconds);
    longest = std::max(longest, report.seconds);
  }
  state.counters["longest_ms"] = longest * 1e3;
}

void register_all() {
  const Shape big{32, 8, 128, 128};
  std::vector<Case> cases;
  for (const double share : {0.08, 0.05, 0.025}) {
    const std::string at = "/share" + std::to_string(share).substr(0, 5);
    cases.push_back({"layer/32q8kv/d128/32K" + at, big, 32768, 4, share});
    cases.push_back({"layer/32q8kv/d128/128K" + at, big, 131072, 2, share});
  }
  cases.push_back({"layer/9q3kv/d64/8K/share0.08", {9, 3, 64, 64}, 8192, 30, 0.08});
  if (std::getenv("TACTIC_BENCH_DUMP") != nullptr) cases.push_back({"layer/dump", {}, 0, 0, 0});
  for (const std::int64_t tokens : {32768, 131072}) {
    const Case c{"recluster/32q8kv/d128/" + std::to_string(tokens / 1024) + "K", big, tokens, 1, 0};
    benchmark::RegisterBenchmark(c.name.c_str(), [c](benchmark::State& state) { run_recluster(state, c); })
        ->UseManualTime()
        ->Iterations(20)
        ->Unit(benchmark::kMillisecond);
  }
  for (const Case& c : cases) {
    benchmark::RegisterBenchmark(c.name.c_str(), [c](benchmark::State& state) { run_layer(state, c); })
        ->UseManualTime()
        ->Iterations(c.tokens < 10000 ? 600 : 64)
        ->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace
}  // namespace tactic::bench

int main(int argc, char** argv) {
  tactic::bench::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
