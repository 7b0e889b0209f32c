// bench attention: one layer's decode step by stages, beside what the machine's memory allows, in one run.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "bench/limits.h"
#include "commands.h"
#include "core/isa.h"
#include "files.h"
#include "interrupt.h"
#include "progress.h"
#include "sequence/sequence.h"
#include "workload.h"

namespace tactic::program {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kStreamBytes = std::size_t{1} << 29;  // far beyond any cache
// Tried in turn, the best counts: which one that is depends on the processor and on what its neighbours do.
constexpr std::array<bench::GatherWay, 4> kGatherWays{{{16, false}, {32, false}, {64, false}, {16, true}}};
constexpr std::int64_t kLongSegment = 16384;  // longer contexts cluster in such pieces: k-means costs n^2 / cluster size

// What one decode step of a layer read, for the limits.
struct Chosen {
  std::vector<std::vector<std::int32_t>> ids;  // [kv_heads]
  double metadata_bytes = 0;
};

// The bare gathers of the timed queries.
struct Gathers {
  std::vector<Chosen> chosen;                       // [queries * layers]
  std::vector<std::vector<bench::Gather>> queries;  // [queries][layers], into chosen
  double metadata_bytes = 0;                        // of a layer, mean
};

struct Figures {
  double stream_gb_per_second = 0;
  double gather_us = 0;
  double dense_us = 0;
  double tactic_us = 0, rank_us = 0, estimate_us = 0, union_us = 0, attend_us = 0;
  double attended_share = 0;
  double estimated_mass = 0;
  double bytes_share = 0;
};

// Median over every `step`-th round from `first` on; infinite where there is none.
double middle(const std::vector<Figures>& rounds, double Figures::*member, std::size_t first = 0, std::size_t step = 1) {
  std::vector<double> values;
  values.reserve(rounds.size());
  for (std::size_t i = first; i < rounds.size(); i += step) values.push_back(rounds[i].*member);
  if (values.empty()) return std::numeric_limits<double>::infinity();
  const auto half = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), half, values.end());
  return *half;
}

// Each time's median: a neighbour that takes the memory for a moment does not count. Shares are means.
Figures middle_of(const std::vector<Figures>& rounds) {
  Figures figures;
  for (const auto member : {&Figures::stream_gb_per_second, &Figures::dense_us, &Figures::tactic_us, &Figures::rank_us,
                            &Figures::estimate_us, &Figures::union_us, &Figures::attend_us}) {
    figures.*member = middle(rounds, member);
  }
  figures.gather_us = std::numeric_limits<double>::infinity();
  for (std::size_t way = 0; way < kGatherWays.size(); ++way) {
    figures.gather_us = std::min(figures.gather_us, middle(rounds, &Figures::gather_us, way, kGatherWays.size()));
  }
  for (const Figures& round : rounds) {
    const double weight = 1.0 / static_cast<double>(rounds.size());
    figures.attended_share += weight * round.attended_share;
    figures.estimated_mass += weight * round.estimated_mass;
    figures.bytes_share += weight * round.bytes_share;
  }
  return figures;
}

class AttentionBench {
 public:
  AttentionBench(const BenchOptions& options, Team& team, Workload work);

  double cluster();
  double steer(double share);  // scales the queries until that share is attended; returns the scale
  Gathers gathers();
  // Streaming, the bare gather, dense and Tactic in turns, so that all meet the same state of the machine, and cold caches.
  Figures measure(const Gathers& gathers);
  const Workload& work() const { return work_; }
  double layer_bytes() const;  // K and V of all tokens
  double index_share() const;  // index bytes / K and V bytes

 private:
  StepReport step(Sequence& sequence, int layer, int round, bool bits);
  void add_round(int round, Figures& figures);
  Chosen choose(int layer, int query);

  const BenchOptions& options_;
  Team& team_;
  Workload work_;
  WorkspacePtr workspace_ = make_workspace();
  Options method_;
  std::vector<Sequence> sequences_;  // [layers], of one layer each
  double query_scale_ = 1;
  std::vector<float> q_, out_, estimated_;
  std::vector<std::int64_t> attended_;
  std::vector<std::uint64_t> bits_;
};

AttentionBench::AttentionBench(const BenchOptions& options, Team& team, Workload work)
    : options_(options), team_(team), work_(std::move(work)) {
  const Shape& shape = work_.shape;
  q_.resize(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.head_dim));
  out_.resize(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.v_head_dim));
  estimated_.resize(static_cast<std::size_t>(shape.q_heads));
  attended_.resize(static_cast<std::size_t>(shape.kv_heads));
  bits_.resize(attended_.size() * static_cast<std::size_t>((work_.tokens + 63) / 64));
  method_ = options_for(options.method);
  if (work_.tokens > 2 * kLongSegment) method_.segment_tokens = static_cast<int>(kLongSegment);
}

double AttentionBench::layer_bytes() const {
  return static_cast<double>(work_.tokens) * work_.shape.kv_heads * (work_.shape.head_dim + work_.shape.v_head_dim) * 2;
}

double AttentionBench::index_share() const {
  double bytes = 0;
  for (const Sequence& sequence : sequences_) bytes += static_cast<double>(sequence.index_bytes());
  return bytes / (layer_bytes() * static_cast<double>(sequences_.size()));
}

double AttentionBench::cluster() {
  Progress progress("cluster", static_cast<double>(work_.kv.size()), "layers");
  double seconds = 0;
  for (std::size_t layer = 0; layer < work_.kv.size(); ++layer) {
    Sequence& sequence = sequences_.emplace_back(
        SequenceConfig{.layers = 1, .shape = work_.shape, .params = work_.params, .rotary = work_.rotary, .options = method_});
    const std::int64_t row = static_cast<std::int64_t>(q_.size());
    sequence.observe(0, work_.q[layer].data(), work_.prompt_queries, row, work_.shape.head_dim);
    seconds += sequence.update(team_, *workspace_, 0, work_.kv[layer], true).seconds;
    progress.update(static_cast<double>(layer + 1));
    if (interrupted()) throw Interrupted{};
  }
  progress.finish();
  return seconds;
}

StepReport AttentionBench::step(Sequence& sequence, int layer, int round, bool bits) {
  const int timed = work_.queries - work_.prompt_queries;
  const auto row = static_cast<std::size_t>(work_.prompt_queries + round % timed) * q_.size();
  const auto& all = work_.q[static_cast<std::size_t>(layer)];
  for (std::size_t i = 0; i < q_.size(); ++i) q_[i] = static_cast<float>(query_scale_) * all[row + i];
  StepReport report;
  report.attended = attended_;
  report.estimated_mass = estimated_;
  if (bits) report.token_bits = bits_;
  const Status status = sequence.attend(team_, *workspace_, 0, q_.data(), work_.kv[static_cast<std::size_t>(layer)], nullptr,
                                        out_.data(), nullptr, &report);
  if (status != Status::ok) throw Error(status, "keys have values that are not finite: record the capture again");
  return report;
}

Figures AttentionBench::measure(const Gathers& gathers) {
  const bench::Pages stream(kStreamBytes, options_.workload.huge_pages);
  std::memset(stream.data(), 1, stream.size());  // or all of it would be the one zero page
  const int layers = static_cast<int>(work_.kv.size());
  Options full = method_;
  full.method = Method::full;
  Sequence dense({.layers = 1, .shape = work_.shape, .params = work_.params, .rotary = work_.rotary, .options = full});
  for (int layer = 0; layer < layers; ++layer) {
    step(dense, layer, 0, false);
    step(sequences_[static_cast<std::size_t>(layer)], layer, 0, false);
  }
  std::vector<Figures> rounds;
  for (int round = 0; round < options_.rounds; ++round) {
    Figures& figures = rounds.emplace_back();
    const auto number = static_cast<std::size_t>(round);
    figures.stream_gb_per_second = bench::stream_bandwidth(team_, {stream.data(), stream.size()}, 1);
    // Dense attention before either: Tactic and the bare gather find the same lines and address translations in the caches.
    for (const bool gather : {number / kGatherWays.size() % 2 == 0, number / kGatherWays.size() % 2 != 0}) {
      const auto start = Clock::now();
      for (int layer = 0; layer < layers; ++layer) step(dense, layer, round, false);
      figures.dense_us += 1e6 * seconds_since(start) / layers / 2;
      if (gather) {
        figures.gather_us = 1e6 * bench::gather_seconds(team_, gathers.queries[number % gathers.queries.size()],
                                                        kGatherWays[number % kGatherWays.size()]);
      } else {
        add_round(round, figures);
      }
    }
    if (interrupted()) throw Interrupted{};
  }
  return middle_of(rounds);
}

// A step of every layer: its times are means over the layers.
void AttentionBench::add_round(int round, Figures& figures) {
  const int layers = static_cast<int>(work_.kv.size());
  const auto start = Clock::now();
  for (int layer = 0; layer < layers; ++layer) {
    const StepReport report = step(sequences_[static_cast<std::size_t>(layer)], layer, round, false);
    figures.rank_us += report.rank_us / layers;
    figures.estimate_us += report.estimate_us / layers;
    figures.union_us += report.union_us / layers;
    figures.attend_us += report.attend_us / layers;
    figures.bytes_share += report.bytes / report.dense_bytes / layers;
    for (const std::int64_t tokens : attended_) {
      figures.attended_share += static_cast<double>(tokens) / static_cast<double>(work_.tokens) / work_.shape.kv_heads / layers;
    }
    for (const float mass : estimated_) figures.estimated_mass += static_cast<double>(mass) / work_.shape.q_heads / layers;
  }
  figures.tactic_us = 1e6 * seconds_since(start) / layers;
}

// Sharper queries (longer ones) attend to less: bisection on the logarithm of their scale.
double AttentionBench::steer(double share) {
  double low = -2;
  double high = 2;
  Progress progress("steer", 12, "trials");
  for (int trial = 0; trial < 12; ++trial) {
    query_scale_ = std::exp((low + high) / 2);
    double now = 0;
    for (std::size_t layer = 0; layer < sequences_.size(); ++layer) {
      step(sequences_[layer], static_cast<int>(layer), trial, false);
      for (const std::int64_t tokens : attended_) {
        now += static_cast<double>(tokens) / static_cast<double>(work_.tokens) /
               static_cast<double>(attended_.size() * sequences_.size());
      }
    }
    (now > share ? low : high) = (low + high) / 2;
    progress.update(trial + 1);
    if (interrupted()) throw Interrupted{};
  }
  progress.finish();
  return query_scale_;
}

Chosen AttentionBench::choose(int layer, int query) {
  const StepReport report = step(sequences_[static_cast<std::size_t>(layer)], layer, query, true);
  Chosen chosen;
  const auto words = static_cast<std::size_t>((work_.tokens + 63) / 64);
  std::size_t rows = 0;
  for (int head = 0; head < work_.shape.kv_heads; ++head) {
    auto& ids = chosen.ids.emplace_back();
    const auto bits = std::span(bits_).subspan(static_cast<std::size_t>(head) * words, words);
    for (std::int64_t token = 0; token < work_.tokens; ++token) {
      if (((bits[static_cast<std::size_t>(token / 64)] >> (token % 64)) & 1u) != 0)
        ids.push_back(static_cast<std::int32_t>(token));
    }
    rows += ids.size();
  }
  chosen.metadata_bytes = report.bytes - static_cast<double>(rows) * (work_.shape.head_dim + work_.shape.v_head_dim) * 2;
  return chosen;
}

Gathers AttentionBench::gathers() {
  Gathers all;
  const int layers = static_cast<int>(work_.kv.size());
  const int timed = work_.queries - work_.prompt_queries;
  for (int i = 0; i < timed * layers; ++i) {
    all.chosen.push_back(choose(i % layers, i / layers));
    all.metadata_bytes += std::max(all.chosen.back().metadata_bytes, 0.0) / (timed * layers);
    if (interrupted()) throw Interrupted{};
  }
  for (int i = 0; i < timed * layers; ++i) {
    if (i % layers == 0) all.queries.emplace_back();
    bench::Gather& gather =
        all.queries.back().emplace_back(bench::Gather{.kv = work_.kv[static_cast<std::size_t>(i % layers)], .lists = {}});
    for (const auto& ids : all.chosen[static_cast<std::size_t>(i)].ids) {
      gather.lists.push_back({.ids = ids.data(), .first = 0, .count = static_cast<std::int64_t>(ids.size())});
    }
  }
  return all;
}

void print_figures(const ordered_json& json) {
  const auto number = [&](const char* key) { return json[key].get<double>(); };
  fmt::print("{} query heads, {} KV heads, head dim {}, {} tokens, P = {}, {} threads, {}, {} pages\n{}\n",
             json["q_heads"].get<int>(), json["kv_heads"].get<int>(), json["head_dim"].get<int>(),
             json["context_tokens"].get<std::int64_t>(), number("mass"), json["threads"].get<int>(),
             json["isa"].get<std::string>(), json["pages"].get<std::string>(), json["keys"].get<std::string>());
  fmt::print("streaming  {:8.1f} GB/s\n", number("stream_gb_per_second"));
  fmt::print("dense      {:8.0f} us a layer, {:.1f} GB/s ({:.0f}% of streaming)\n", number("dense_microseconds"),
             number("dense_gb_per_second"), 100 * number("dense_gb_per_second") / number("stream_gb_per_second"));
  fmt::print("{:<10} {:8.0f} us a layer: rank {:.0f}, estimate {:.0f}, union {:.0f}, attend {:.0f}\n",
             json["method"].get<std::string>(), number("tactic_microseconds"), number("rank_microseconds"),
             number("estimate_microseconds"), number("union_microseconds"), number("attend_microseconds"));
  fmt::print(
      "attended {:.1f}% of K and V, {:.1f}% of the bytes; {:.2f}x dense (0.38 / share = {:.2f}x); {:.0f}% of the limit ({:.0f} "
      "us)\n",
      100 * number("attended_share"), 100 * number("bytes_read_share"), number("speedup_over_dense"),
      0.38 / number("attended_share"), 100 * number("share_of_limit"), number("limit_microseconds"));
}

}  // namespace

int bench_attention(const BenchOptions& options) {
  const auto team = make_thread_team(options.threads);
  AttentionBench bench(options, *team,
                       options.keys == "synthetic" ? synthetic_workload(options.workload, *team)
                                                   : captured_workload(options.keys, options.workload.huge_pages));
  ordered_json json;
  const Workload& work = bench.work();
  json["q_heads"] = work.shape.q_heads;
  json["kv_heads"] = work.shape.kv_heads;
  json["head_dim"] = work.shape.head_dim;
  json["context_tokens"] = work.tokens;
  json["layers"] = work.kv.size();
  json["method"] = options.method.method;
  json["mass"] = options.method.mass;
  json["goal"] = options.method.used_goal();
  json["promise"] = options.method.promise;
  json["threads"] = team->size();
  json["isa"] = name_of(active_isa());
  const bool huge = work.pages.front().in_huge_pages();
  json["pages"] = huge ? "2M" : "4K";
  json["keys"] = work.keys;
  json["cluster_seconds"] = bench.cluster();
  json["index_share_of_kv_bytes"] = bench.index_share();
  if (options.share > 0) json["query_scale"] = bench.steer(options.share);
  const Gathers gathers = bench.gathers();
  const Figures figures = bench.measure(gathers);
  // What a layer cannot beat: a bare gather of the same rows, and the metadata streamed.
  const double limit = figures.gather_us + gathers.metadata_bytes / figures.stream_gb_per_second / 1e3;
  json["stream_gb_per_second"] = figures.stream_gb_per_second;
  json["dense_microseconds"] = figures.dense_us;
  json["dense_gb_per_second"] = bench.layer_bytes() / figures.dense_us / 1e3;
  json["tactic_microseconds"] = figures.tactic_us;
  json["rank_microseconds"] = figures.rank_us;
  json["estimate_microseconds"] = figures.estimate_us;
  json["union_microseconds"] = figures.union_us;
  json["attend_microseconds"] = figures.attend_us;
  json["attended_share"] = figures.attended_share;
  if (options.share > 0 && std::abs(figures.attended_share - options.share) > 0.25 * options.share) {
    fmt::print(stderr,
               "tactic: --share {:.3f} was not reached ({:.3f}): under goal error even attention takes few tokens, too; add "
               "--goal mass\n",
               options.share, figures.attended_share);
  }
  json["bytes_read_share"] = figures.bytes_share;
  json["estimated_mass_mean"] = figures.estimated_mass;
  json["speedup_over_dense"] = figures.dense_us / figures.tactic_us;
  json["limit_microseconds"] = limit;
  json["share_of_limit"] = limit / figures.tactic_us;
  print_figures(json);
  if (!options.json.empty()) write_text_file(options.json, json.dump(2) + "\n", "name another file with --json");
  return 0;
}

}  // namespace tactic::program
