// Speed of the stages of select, one thread: C clusters and G heads as models and contexts have them (4K at size 16, 32K and
// 128K at size 32).
#include "select/select.h"

#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

namespace tactic {
namespace {

struct Case {
  Case(int count, int group_of, int dim) : group(group_of) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    auto segment = std::make_shared<Segment>();
    segment->head_dim = segment->v_head_dim = dim;
    segment->heads.resize(1);
    HeadClusters& head = segment->heads[0];
    const auto n = static_cast<std::size_t>(count);
    const auto d = static_cast<std::size_t>(dim);
    head.count = count;
    head.begin.resize(n + 1);
    std::uniform_int_distribution<int> size(1, 63);
    head.begin[0] = 0;
    for (std::size_t c = 0; c < n; ++c) head.begin[c + 1] = head.begin[c] + size(random);
    segment->last = head.begin[n];
    head.tokens.resize(static_cast<std::size_t>(segment->last));
    for (std::size_t i = 0; i < head.tokens.size(); ++i)
      head.tokens[i] = static_cast<std::int32_t>(i * 7919 % head.tokens.size());
    head.centroid8.resize(n * d);
    head.mean_v.resize(n * d);
    for (auto* bytes : {&head.centroid8, &head.mean_v}) {
      for (auto& x : *bytes) x = static_cast<std::int8_t>(random() & 0xff);
    }
    for (auto* field : {&head.centroid_scale, &head.mean_v_scale}) {
      field->resize(n);
      field->fill(0.02f);
    }
    head.spread.resize(n);
    for (float& x : head.spread) x = std::exp(0.3f * normal(random));
    head.covariance.resize(d * d);
    head.covariance.fill(0.01f);
    head.mean_spread = 1;
    const std::vector<std::shared_ptr<const Segment>> segments{segment};
    table = make_table(segments, 0);
    const auto heads = static_cast<std::size_t>(group);
    q.resize(heads * d);
    for (float& x : q) x = normal(random);
    query = {q.data(), {group, 1, dim, dim}, {1 / std::sqrt(static_cast<float>(dim)), 0, nullptr}};
    logits.resize(heads * static_cast<std::size_t>(table.stride));
    mass = logits;
    h.assign(heads, 0.3f);
    fixed.assign(heads, static_cast<float>(count) * 2);
    reference.assign(heads, 2.0f);
    target.assign(heads, 0.9f);
    total.assign(heads, static_cast<float>(count) * 40);
    factor.resize(heads);
    chosen.resize(static_cast<std::size_t>(table.stride));
    list.resize(n);
    for (std::size_t c = 0; c < n; ++c) {  // log-normal densities, half of the variance shared between the heads
      const float common = normal(random);
      for (std::size_t g = 0; g < heads; ++g) {
        logits[g * static_cast<std::size_t>(table.stride) + c] = 1.4f * (common + normal(random));
      }
    }
    estimate_masses(table, group, logits.data(), h.data(), reference.data(), mass.data());
  }

  int group;
  HeadTable table;
  std::vector<float> q, logits, mass, h, fixed, reference, target, total, factor, weights;
  Query query;
  std::vector<std::uint8_t> chosen;
  std::vector<std::int32_t> list;
  SelectScratch scratch;
};

void rank(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  for (auto _ : state) {
    score_centroids(c.query, 0, c.table, 0, c.table.count, c.logits.data());
    benchmark::ClobberMemory();
  }
  state.counters["centroid_bytes"] =
      benchmark::Counter(static_cast<double>(state.range(0) * state.range(2)), benchmark::Counter::kIsIterationInvariantRate);
}
void spread_forms(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  for (auto _ : state) {
    half_variances(c.query, 0, c.table, c.h.data());
    benchmark::ClobberMemory();
  }
}
void estimate(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  for (auto _ : state) {
    estimate_masses(c.table, c.group, c.logits.data(), c.h.data(), c.reference.data(), c.mass.data());
    benchmark::ClobberMemory();
  }
}
void choose_one(benchmark::State& state, bool joint) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  int n = 0;
  for (auto _ : state) {
    std::fill(c.chosen.begin(), c.chosen.end(), std::uint8_t{0});
    n = choose(c.table, c.group, c.mass.data(), c.fixed.data(), c.target.data(), joint, c.chosen.data(), c.list.data(),
               c.factor.data(), c.scratch);
  }
  state.counters["chosen"] = n;
}
void choose_joint(benchmark::State& state) { choose_one(state, true); }
void choose_union(benchmark::State& state) { choose_one(state, false); }
void factors(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  const int n = choose(c.table, c.group, c.mass.data(), c.fixed.data(), c.target.data(), true, c.chosen.data(), c.list.data(),
                       c.factor.data(), c.scratch);
  for (auto _ : state) {
    tail_factors(c.table, c.group, c.mass.data(), c.mass.data(), {c.list.data(), static_cast<std::size_t>(n)}, c.factor.data(),
                 c.scratch);
  }
}
void tail(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  c.weights.resize(static_cast<std::size_t>(128 * c.group));
  for (auto _ : state) {
    choose_tail(c.table, c.group, c.logits.data(), c.h.data(), c.reference.data(), c.total.data(), c.chosen.data(), 128,
                c.list.data(), c.weights.data(), c.scratch);
  }
}
void tail_add(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  c.weights.resize(static_cast<std::size_t>(128 * c.group), 0.1f);
  for (std::size_t i = 0; i < 128; ++i) c.list[i] = static_cast<std::int32_t>(i * static_cast<std::size_t>(c.table.count) / 128);
  std::vector<float> output(static_cast<std::size_t>(c.group) * static_cast<std::size_t>(state.range(2)));
  for (auto _ : state) {
    add_tail(c.table, c.group, static_cast<int>(state.range(2)), {c.list.data(), 128}, c.weights.data(), 128,
             {output.data(), c.factor.data(), c.factor.data()});
    benchmark::ClobberMemory();
  }
}
// A tenth of the clusters, marked and listed.
void tokens(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  std::vector<std::int32_t> clusters;
  for (int i = 0; i < c.table.count; i += 10) clusters.push_back(i);
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(c.table.token_count) / 64 + 1, 0);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(c.table.token_count));
  for (auto _ : state) {
    mark_tokens(c.table, clusters, bits.data());
    benchmark::DoNotOptimize(take_tokens(bits.data(), static_cast<std::int64_t>(bits.size()), ids.data()));
  }
}
void paper(benchmark::State& state) {
  Case c(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)));
  const std::int64_t dim = state.range(2);
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(c.table.token_count * dim), 0x2c00);
  Rows k{reinterpret_cast<const std::byte*>(rows.data()), DType::f16, static_cast<int>(dim), dim * 2, dim * 2, 0};
  const KvView kv{k, k, 1, c.table.token_count, nullptr, 1};
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(c.table.token_count) / 64 + 1, 0);
  std::vector<std::int64_t> budget(static_cast<std::size_t>(c.group));
  const Options options = paper_options();
  for (auto _ : state) {
    choose_paper(c.query, kv, 0, c.table, c.logits.data(), c.fixed.data(), c.reference.data(), options, bits.data(),
                 budget.data(), c.factor.data(), nullptr, c.scratch);
  }
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->Args({250, 3, 64})->Args({1000, 7, 64})->Args({4096, 4, 128})->Unit(benchmark::kMicrosecond)->MinTime(0.1);
}
BENCHMARK(rank)->Apply(shapes);
BENCHMARK(spread_forms)->Apply(shapes);
BENCHMARK(estimate)->Apply(shapes);
BENCHMARK(choose_joint)->Apply(shapes);
BENCHMARK(choose_union)->Apply(shapes);
BENCHMARK(factors)->Apply(shapes);
BENCHMARK(tail)->Apply(shapes);
BENCHMARK(tail_add)->Apply(shapes);
BENCHMARK(tokens)->Apply(shapes);
BENCHMARK(paper)->Apply(shapes);

}  // namespace
}  // namespace tactic

BENCHMARK_MAIN();
