// Attention against the limits of the memory: dense over a whole cache, gathered over chosen tokens, both cold.
//
// Counters: GB/s of K and V rows; of_limit, the share of the streaming bandwidth (dense) or of a bare gather of the same rows
// (gather) measured in the same run.
#include "attend/attend.h"

#include <benchmark/benchmark.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "bench/limits.h"
#include "core/buffer.h"

namespace tactic::bench {
namespace {

struct Case {
  int q_heads;
  int kv_heads;
  int dim;
  std::int64_t tokens;
  DType type = DType::f16;
  bool head_major = false;
  bool huge = false;
};

std::string name_of(const Case& c) {
  return std::to_string(c.q_heads) + "q" + std::to_string(c.kv_heads) + "kv/d" + std::to_string(c.dim) + "/" +
         std::to_string(c.tokens / 1024) + "K/" +
         (c.type == DType::f16    ? "f16"
          : c.type == DType::bf16 ? "bf16"
                                  : "f32") +
         (c.head_major ? "/head-major" : "/token-major") + (c.huge ? "/huge" : "/4K");
}

constexpr double kCacheBytes = 0.6e9;  // an order of magnitude above the L3 of a server's core complex

// Everything a run needs, made when it starts and dropped when it ends.
struct Setup {
  explicit Setup(const Case& c)
      : team(make_thread_team(0)),
        shape{c.q_heads, c.kv_heads, c.dim, c.dim},
        cache({c.kv_heads, c.dim, c.tokens,
               static_cast<int>(std::ceil(kCacheBytes / (4.0 * c.kv_heads * c.dim * static_cast<double>(c.tokens)))), c.type,
               c.head_major, c.huge}),
        q(static_cast<std::size_t>(c.q_heads * c.dim)) {
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(std::sin(static_cast<double>(i) * 1.7));
    for (int i = 0; i < team->size(); ++i) {
      partials.emplace_back(static_cast<std::size_t>(c.q_heads * (c.dim + 32)));
    }
  }
  Query query() const { return {q.data(), shape, {1 / std::sqrt(static_cast<float>(shape.head_dim)), 0, nullptr}}; }
  Partial partial(int rank) {
    float* data = partials[static_cast<std::size_t>(rank)].data();
    float* scalars = data + shape.q_heads * shape.v_head_dim;
    return {data, scalars, scalars + shape.q_heads};
  }
  void finish(Worker& worker) {
    worker.barrier();
    if (worker.rank() != 0) return;
    for (int i = 1; i < worker.size(); ++i) merge(partial(0), partial(i), shape.q_heads, shape.v_head_dim);
    normalise(partial(0), shape.q_heads, shape.v_head_dim, nullptr, partial(0).output, nullptr);
  }

  std::unique_ptr<Team> team;
  Shape shape;
  Cache cache;
  Buffer<float> q;
  std::vector<Buffer<float>> partials;
};

double stream_limit(Team& team, bool huge) {
  static std::map<bool, double> known;
  const auto found = known.find(huge);
  if (found != known.end()) return found->second;
  return known[huge] = stream_bandwidth(team, std::size_t{1} << 29, huge);
}

void dense(benchmark::State& state, const Case& c) {
  Setup setup(c);
  const double limit = stream_limit(*setup.team, c.huge);
  int layer = 0;
  for (auto _ : state) {
    setup.team->run([&](Worker& worker) {
      const auto [begin, end] = worker.share(c.tokens);
      attend_all(setup.query(), setup.cache.layer(layer), {nullptr, begin, end - begin}, setup.partial(worker.rank()));
      setup.finish(worker);
    });
    layer = (layer + 1) % setup.cache.layers();
  }
  const double bytes = setup.cache.layer_bytes() * static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_limit"] = benchmark::Counter(bytes * 1e-9 / limit, benchmark::Counter::kIsRate);
}

// Lists of all heads over all layers; more than one set, so that few chosen tokens do not stay in the caches.
struct GatherLists {
  GatherLists(const Setup& setup, const Case& c, double share) {
    const int sets = static_cast<int>(std::ceil(2e8 / (share * setup.cache.layer_bytes() * setup.cache.layers())));
    for (int set = 0; set < sets; ++set) {
      for (int layer = 0; layer < setup.cache.layers(); ++layer) {
        Gather gather{setup.cache.layer(layer), {}};
        for (int head = 0; head < c.kv_heads; ++head) {
          ids.push_back(random_tokens(c.tokens, share, 2.0, ids.size()));
          gather.lists.push_back({ids.back().data(), 0, static_cast<std::int64_t>(ids.back().size())});
        }
        gathers.push_back(std::move(gather));
      }
    }
  }
  std::vector<std::vector<std::int32_t>> ids;  // moved, never copied: lists point into them
  std::vector<Gather> gathers;
};

void gather(benchmark::State& state, const Case& c, double share) {
  Setup setup(c);
  const GatherLists lists(setup, c, share);
  const double limit = bare_gather_seconds(*setup.team, lists.gathers);
  std::size_t at = 0;
  double bytes = 0;
  for (auto _ : state) {
    const Gather& now = lists.gathers[at];
    setup.team->run([&](Worker& worker) {
      const Partial out = setup.partial(worker.rank());
      const int group = setup.shape.group();
      for (int head = 0; head < c.kv_heads; ++head) {
        const TokenList& list = now.lists[static_cast<std::size_t>(head)];
        const auto [begin, end] = worker.share(list.count);
        attend_list(setup.query(), now.kv, head, {list.ids + begin, 0, end - begin},
                    {out.output + head * group * c.dim, out.maximum + head * group, out.sum + head * group}, nullptr, 0);
      }
      setup.finish(worker);
    });
    bytes += bytes_of(now);
    at = (at + 1) % lists.gathers.size();
  }
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_limit"] = benchmark::Counter(limit * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void stream(benchmark::State& state, bool huge) {
  const auto team = make_thread_team(0);
  double best = 0;
  for (auto _ : state) best = std::max(best, stream_bandwidth(*team, std::size_t{1} << 29, huge, 1));
  state.counters["GB/s"] = best;
}

void add(const Case& c) {
  benchmark::RegisterBenchmark(("dense/" + name_of(c)).c_str(), [c](benchmark::State& state) { dense(state, c); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

void add_gather(const Case& c, double share) {
  const std::string name = "gather/" + std::to_string(share * 100).substr(0, 3) + "%/" + name_of(c);
  benchmark::RegisterBenchmark(name.c_str(), [c, share](benchmark::State& state) { gather(state, c, share); })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

void register_all() {
  for (const bool huge : {false, true}) {
    benchmark::RegisterBenchmark(huge ? "stream/huge" : "stream/4K", [huge](benchmark::State& state) { stream(state, huge); })
        ->UseRealTime()
        ->Iterations(5)
        ->Unit(benchmark::kMillisecond);
    add({32, 8, 128, 32768, DType::f16, false, huge});
    add({32, 8, 128, 32768, DType::bf16, false, huge});
    add({32, 8, 128, 32768, DType::f16, true, huge});
    for (const std::int64_t tokens : {8192, 32768}) {
      add({9, 3, 64, tokens, DType::f16, false, huge});
      add({14, 2, 64, tokens, DType::f16, false, huge});
    }
    add({14, 2, 64, 32768, DType::f16, true, huge});
    for (const double share : {0.08, 0.05, 0.025}) {
      add_gather({32, 8, 128, 32768, DType::f16, false, huge}, share);
      add_gather({9, 3, 64, 8192, DType::f16, false, huge}, share);
      add_gather({14, 2, 64, 32768, DType::f16, false, huge}, share);
    }
  }
}

}  // namespace
}  // namespace tactic::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  tactic::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
