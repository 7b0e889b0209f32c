// Speed of clustering: whole segments at the shapes of real models, the distance kernel alone, and a peak to hold them against.
//
// gflops counts a multiply-add as two: of the distance for the whole segments (transform and covariance come on top, unpaid).
// peak_share is of `peak`, measured in this run: independent multiply-adds in registers on as many threads.
// Keys are Gaussian with a few strong dims, the metric a random one: the work does not depend on the values, but for the early
// stop, which three iterations never meet.
#include "cluster/cluster.h"

#include <benchmark/benchmark.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cluster/kernels.h"
#include "core/half.h"
#include "core/isa.h"
#include "core/team.h"

namespace {

constexpr int kThreads = 2;

// ---- peak ------------------------------------------------------------------------------------------------------------

constexpr int kChains = 12;  // more than latency x ports on every x86 so far

#define TACTIC_SPIN(name, bytes, isa)                                     \
  __attribute__((target(isa), noinline)) float name(std::int64_t steps) { \
    typedef float Vector __attribute__((vector_size(bytes)));             \
    Vector x[kChains];                                                    \
    Vector factor = {};                                                   \
    factor += 0.5f;                                                       \
    for (Vector & v : x) v = factor;                                      \
    for (std::int64_t s = 0; s < steps; ++s) {                            \
      for (int i = 0; i < kChains; ++i) x[i] = x[i] * factor + factor;    \
    }                                                                     \
    float sum = 0;                                                        \
    for (const Vector& v : x) sum += v[0];                                \
    return sum;                                                           \
  }
#if defined(__x86_64__)
TACTIC_SPIN(spin512, 64, "avx512f")
TACTIC_SPIN(spin256, 32, "avx2,fma")
TACTIC_SPIN(spin128, 16, "sse2")
#endif

// Multiply-adds of one call, in floats.
double spin(std::int64_t steps) {
#if defined(__x86_64__)
  const tactic::Isa isa = tactic::active_isa();
  const float sum = isa == tactic::Isa::avx512 ? spin512(steps) : isa == tactic::Isa::avx2 ? spin256(steps) : spin128(steps);
  benchmark::DoNotOptimize(sum);
  return static_cast<double>(steps) * kChains * (isa == tactic::Isa::avx512 ? 16 : isa == tactic::Isa::avx2 ? 8 : 4);
#else
  return 0 * static_cast<double>(steps);
#endif
}

// GFLOP/s of a team: best of many short rounds, so that other programs' turns fall out.
double peak_gflops(tactic::Team& team) {
  double best = 0;
  for (int round = 0; round < 50; ++round) {
    std::atomic<double> work{0};
    const auto start = std::chrono::steady_clock::now();
    team.run([&](tactic::Worker&) { work.fetch_add(spin(200'000)); });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2e-9 * work / taken.count());
  }
  return best;
}

void report(benchmark::State& state, double multiply_adds, tactic::Team& team) {
  using benchmark::Counter;
  const double peak = peak_gflops(team);
  state.counters["gflops"] = Counter(2e-9 * multiply_adds, Counter::kIsIterationInvariantRate);
  state.counters["peak_gflops"] = peak;
  state.counters["peak_share"] = Counter(2e-9 * multiply_adds / std::max(peak, 1e-9), Counter::kIsIterationInvariantRate);
}

// ---- data ------------------------------------------------------------------------------------------------------------

struct Layer {
  std::vector<std::uint16_t> k, v;  // [tokens, kv_heads, d] f16
  tactic::KvView view;
  std::vector<tactic::MetricSpace> metrics;
};

Layer make_layer(std::int64_t tokens, int kv_heads, int dim, tactic::Metric metric) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(1 << 16);
  for (auto& x : values) x = tactic::float_to_half(normal(random));
  Layer layer;
  const std::int64_t width = static_cast<std::int64_t>(kv_heads) * dim;
  layer.k.resize(static_cast<std::size_t>(tokens * width));
  for (auto& x : layer.k) x = values[random() % values.size()];
  layer.v = layer.k;
  const auto rows = [&](const std::vector<std::uint16_t>& data) {
    return tactic::Rows{reinterpret_cast<const std::byte*>(data.data()), tactic::DType::f16, dim, 2 * width, 2 * dim, 0};
  };
  layer.view = {rows(layer.k), rows(layer.v), kv_heads, tokens, nullptr, 1};
  std::vector<float> queries(static_cast<std::size_t>(128) * dim);
  for (auto& x : queries) x = normal(random);
  tactic::QueryMoment moment(dim);
  moment.add(queries.data(), 128, 1, dim, 0);
  const tactic::Rotary rotary{tactic::Rotary::Layout::none, {}};
  layer.metrics.assign(static_cast<std::size_t>(kv_heads), tactic::make_metric(metric, moment, rotary, 0.1f));
  return layer;
}

// ---- suites ----------------------------------------------------------------------------------------------------------

// tokens, kv_heads, head_dim, cluster_size, iterations, metric
void segment(benchmark::State& state) {
  const auto tokens = state.range(0);
  const auto kv_heads = static_cast<int>(state.range(1));
  const auto dim = static_cast<int>(state.range(2));
  const Layer layer = make_layer(tokens, kv_heads, dim, static_cast<tactic::Metric>(state.range(5)));
  tactic::ClusterOptions options;
  options.cluster_size = static_cast<int>(state.range(3));
  options.iterations = static_cast<int>(state.range(4));
  const bool paper = static_cast<tactic::Metric>(state.range(5)) == tactic::Metric::l2;
  options.outlier_share = (paper ? tactic::paper_options() : tactic::Options()).outlier_share;
  const auto team = tactic::make_thread_team(kThreads);
  int count = 0;
  for (auto _ : state) count = tactic::build_segment(*team, layer.view, 0, tokens, layer.metrics, options)->heads[0].count;
  const double passes = options.iterations * (1 - static_cast<double>(options.outlier_share)) + 1;
  report(state, passes * static_cast<double>(tokens) * count * dim * kv_heads, *team);
}

void distance(benchmark::State& state) {
  const auto dim = static_cast<int>(state.range(0));
  const auto clusters = static_cast<int>(state.range(1));
  constexpr int kTokens = 4800;
  const tactic::ClusterKernels& kernels = tactic::cluster_kernels();
  std::vector<float> y(static_cast<std::size_t>(kTokens + tactic::kRowPadding) * dim, 0.5f);
  std::vector<float> packed(static_cast<std::size_t>(clusters + kernels.panel) * dim, 0.25f);
  std::vector<float> bias(static_cast<std::size_t>(clusters + kernels.panel), -1.0f);
  std::vector<float> score(kTokens);
  std::vector<std::int32_t> nearest(kTokens);
  for (auto _ : state) {
    kernels.assign(y.data(), kTokens, dim, packed.data(), bias.data(), clusters, nearest.data(), score.data());
    benchmark::ClobberMemory();
  }
  const auto team = tactic::make_serial_team();
  report(state, static_cast<double>(kTokens) * clusters * dim, *team);
}

void moment(benchmark::State& state) {
  const auto dim = static_cast<int>(state.range(0));
  const auto tokens = static_cast<int>(state.range(1));
  constexpr int kGroup = 4;
  const std::vector<float> queries(static_cast<std::size_t>(tokens) * kGroup * dim, 0.5f);
  tactic::QueryMoment seen(dim);
  for (auto _ : state) seen.add(queries.data(), tokens, kGroup, kGroup * dim, dim);
}

void metric(benchmark::State& state) {
  const auto dim = static_cast<int>(state.range(0));
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<std::size_t>(128) * dim);
  for (auto& x : queries) x = normal(random);
  tactic::QueryMoment seen(dim);
  seen.add(queries.data(), 128, 1, dim, 0);
  tactic::Rotary rotary{tactic::Rotary::Layout::interleaved, {}};
  for (int p = 0; p < dim / 2; ++p)
    rotary.frequency.push_back(std::pow(1e5f, -2.0f * static_cast<float>(p) / static_cast<float>(dim)));
  for (auto _ : state) benchmark::DoNotOptimize(tactic::make_metric(tactic::Metric::query, seen, rotary, 0.1f));
}

constexpr int kQuery = static_cast<int>(tactic::Metric::query);
constexpr int kL2 = static_cast<int>(tactic::Metric::l2);
BENCHMARK(segment)
    ->ArgNames({"tokens", "kv_heads", "d", "size", "iterations", "metric"})
    ->Args({7400, 3, 64, 32, 3, kQuery})
    ->Args({7400, 3, 64, 16, 3, kQuery})
    ->Args({7400, 3, 64, 16, 10, kL2})
    ->Args({32000, 2, 64, 32, 3, kQuery})
    ->Args({32000, 2, 64, 16, 3, kQuery})
    ->Args({32000, 2, 64, 16, 10, kL2})
    ->Args({2048, 8, 128, 32, 3, kQuery})
    ->Args({2048, 3, 64, 32, 3, kQuery})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(distance)
    ->ArgNames({"d", "clusters"})
    ->Args({64, 231})
    ->Args({64, 1024})
    ->Args({64, 2048})
    ->Args({80, 256})
    ->Args({96, 256})
    ->Args({128, 64})
    ->Args({128, 1024})
    ->Args({256, 1024})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(moment)
    ->ArgNames({"d", "tokens"})
    ->Args({64, 1})
    ->Args({64, 512})
    ->Args({128, 1})
    ->Args({128, 512})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(metric)->ArgName("d")->Arg(64)->Arg(128)->Arg(256)->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
