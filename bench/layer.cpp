// Whole decode steps of a layer against our own dense kernel and against the memory's limits, layers in rotation so that caches
// are cold.
//
// Queries look at topics of the context (layers.h) as sharply as it takes to attend the wanted share at P = 0.9.
//
// Counters: attended share; speedup over dense in the same run; of_target, that over 0.38 / share; of_limit, a bare gather of the
// attended rows plus streaming the metadata, over the step; microseconds by stage.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/layers.h"
#include "bench/limits.h"
#include "decode/decode.h"
#include "sequence/sequence.h"

namespace tactic::bench {
namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point start) { return std::chrono::duration<double, std::micro>(Clock::now() - start).count(); }

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

void run_layer(benchmark::State& state, const Case& c) {
  const auto team = make_thread_team(0);
  Layers layers(c, *team);
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
void run_recluster(benchmark::State& state, const Case& c) {
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
