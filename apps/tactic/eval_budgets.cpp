// Table 1: how many tokens hold P, in exact order, in cluster order, and by the method's own estimate.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>
#include <tuple>

#include "core/error.h"
#include "eval.h"
#include "eval/statistics.h"
#include "eval_attention.h"
#include "eval_clustered.h"
#include "interrupt.h"
#include "session.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

namespace {

struct Sums {
  double rows = 0, optimal = 0, cluster_optimal = 0, taken = 0, achieved = 0, success = 0, deficit = 0;

  void add(double best, double in_clusters, double tokens, double mass, double wanted) {
    rows += 1;
    optimal += best;
    cluster_optimal += in_clusters;
    taken += tokens;
    achieved += mass;
    success += mass >= wanted - 1e-9 ? 1 : 0;
    deficit += std::max(0.0, wanted - mass);
  }
  Json json() const {
    return {{"rows", rows},
            {"optimal", optimal / rows},
            {"cluster_optimal", cluster_optimal / rows},
            {"taken", taken / rows},
            {"achieved", achieved / rows},
            {"success", success / rows},
            {"deficit", deficit / rows}};
  }
};

// Figures of an arm: each query head by itself, and the KV head's union as it is attended.
struct ArmSums {
  Sums alone, united;
  std::vector<Sums> alone_by_layer, united_by_layer;
  double kv_tokens = 0;  // rows read by a KV head
  double kv_rows = 0;
};

void mark(std::vector<std::uint64_t>& bits, std::span<const std::int32_t> tokens) {
  for (const std::int32_t t : tokens) bits[static_cast<std::size_t>(t / 64)] |= std::uint64_t{1} << (t % 64);
}

std::int64_t count(std::span<const std::uint64_t> bits) {
  return std::accumulate(bits.begin(), bits.end(), std::int64_t{0},
                         [](std::int64_t sum, std::uint64_t word) { return sum + std::popcount(word); });
}

double mass_of(std::span<const std::uint64_t> bits, std::span<const double> weights, double total) {
  double sum = 0;
  for (std::size_t t = 0; t < weights.size(); ++t) {
    if (((bits[t / 64] >> (t % 64)) & 1) != 0) sum += weights[t];
  }
  return sum / total;
}

// One step of one layer for all arms.
class BudgetStep {
 public:
  BudgetStep(const WindowAttention& window, int layer, int step) : window_(window), layer_(layer), step_(step) {
    for (int head = 0; head < window.shape.q_heads; ++head) {
      weights_.emplace_back();
      totals_.push_back(exact_weights(window, layer, step, head, weights_.back()));
      orders_.push_back(exact_order(weights_.back()));
    }
  }
  void measure(const Arm& arm, const Options& options, LayerClusters& clusters, ArmSums& sums);

 private:
  const WindowAttention& window_;
  int layer_, step_;
  std::vector<std::vector<double>> weights_;       // [q_heads, tokens]
  std::vector<double> totals_;                     // [q_heads]
  std::vector<std::vector<std::int32_t>> orders_;  // [q_heads, tokens] by exact weight
};

void BudgetStep::measure(const Arm& arm, const Options& options, LayerClusters& clusters, ArmSums& sums) {
  const ClusteredStep step(window_, layer_, step_, clusters, options);
  const auto layer = static_cast<std::size_t>(layer_);
  const int group = window_.shape.group();
  const auto words = static_cast<std::size_t>((step.kv().tokens + 63) / 64);
  std::vector<std::uint64_t> attended_bits;
  const std::vector<std::int64_t> attended = step.attend(arm.mass, attended_bits);
  for (int kv_head = 0; kv_head < window_.shape.kv_heads; ++kv_head) {
    HeadEstimate head = step.estimate(kv_head, weights_);
    const std::vector<std::int64_t> budget = step.budgets(head, kv_head, arm.mass, weights_);
    std::vector<std::uint64_t> best_bits(words);
    std::vector<std::uint64_t> cluster_bits(words);
    const auto own_bits = std::span<const std::uint64_t>(attended_bits).subspan(static_cast<std::size_t>(kv_head) * words, words);
    for (int g = 0; g < group; ++g) {
      const auto q = static_cast<std::size_t>(kv_head * group + g);
      const double wanted = arm.mass * totals_[q];
      const TokenOrder order = step.order(head, kv_head, g);
      const std::int64_t best = tokens_for(orders_[q], weights_[q], wanted);
      const std::int64_t in_clusters = tokens_for(order.tokens, weights_[q], wanted);
      const std::int64_t taken = order.always + budget[static_cast<std::size_t>(g)];
      double reached = 0;
      for (std::int64_t i = 0; i < taken; ++i)
        reached += weights_[q][static_cast<std::size_t>(order.tokens[static_cast<std::size_t>(i)])];
      mark(best_bits, std::span(orders_[q]).first(static_cast<std::size_t>(best)));
      mark(cluster_bits, std::span(order.tokens).first(static_cast<std::size_t>(in_clusters)));
      for (Sums* sum : {&sums.alone, &sums.alone_by_layer[layer]}) {
        sum->add(static_cast<double>(best), static_cast<double>(in_clusters), static_cast<double>(taken), reached / totals_[q],
                 arm.mass);
      }
    }
    const auto best = static_cast<double>(count(best_bits));
    const auto in_clusters = static_cast<double>(count(cluster_bits));
    const auto taken = static_cast<double>(attended[static_cast<std::size_t>(kv_head)]);
    sums.kv_tokens += taken - step_ - 1;
    sums.kv_rows += 1;
    for (int g = 0; g < group; ++g) {
      const auto q = static_cast<std::size_t>(kv_head * group + g);
      const double mass = mass_of(own_bits, weights_[q], totals_[q]);
      for (Sums* sum : {&sums.united, &sums.united_by_layer[layer]}) sum->add(best, in_clusters, taken, mass, arm.mass);
    }
  }
}

// What a clustering and the choice over it depend on besides P: arms that agree share them.
std::string clustering_of(const Options& o) {
  const auto values = std::make_tuple(
      static_cast<int>(o.method), o.cluster_size, o.iterations, o.segment_tokens, static_cast<int>(o.metric), o.shrinkage,
      o.int8_centroids, o.seed, o.outlier_share, o.sink_tokens, o.recent_tokens, o.promise ? o.mass : 0.0f, o.verify, o.spread,
      o.joint, o.tail_factor, o.tail_clusters, static_cast<int>(o.goal), o.fit_head, o.fit_window, o.fit_first, o.fit_second);
  return fmt::format("{}", fmt::join(values, "/"));
}

// Means of a layer, short: a journal holds thousands of them.
Json by_layer(const std::vector<Sums>& layers) {
  Json json;
  for (const Sums& sum : layers) {
    const Json layer = sum.json();
    for (const char* field : {"cluster_optimal", "taken", "success"})
      json[field].push_back(eval::rounded(layer[field].get<double>(), 4));
  }
  return json;
}

// A head alone has a budget for P where mass is what the arm spends its rows for.
bool has_own_budgets(const Options& options) {
  return options.method == Method::paper || options.goal == Goal::mass || options.promise;
}

}  // namespace

Json measure_budgets(EvalRun& run, const WindowAttention& window, std::span<const Arm* const> arms) {
  std::vector<Options> options;
  std::vector<ArmSums> sums(arms.size());
  for (std::size_t i = 0; i < arms.size(); ++i) {
    if (arms[i]->method != "paper" && arms[i]->method != "tactic")
      throw Error(Status::invalid_argument,
                  "method " + arms[i]->method + " has no clusters: this experiment takes paper and tactic");
    options.push_back(options_of(run.engine(), *arms[i]));
    sums[i].alone_by_layer.resize(window.layers.size());
    sums[i].united_by_layer.resize(window.layers.size());
  }
  for (int layer = 0; layer < static_cast<int>(window.layers.size()); ++layer) {
    std::map<std::string, std::unique_ptr<LayerClusters>> clusters;
    for (const Options& o : options) {
      auto& made = clusters[clustering_of(o)];
      if (!made) made = std::make_unique<LayerClusters>(window, layer, o, run.engine().threads());
    }
    for (int step = 0; step < window.steps; ++step) {
      if (interrupted()) throw Interrupted{};
      BudgetStep at(window, layer, step);
      for (std::size_t i = 0; i < arms.size(); ++i)
        at.measure(*arms[i], options[i], *clusters[clustering_of(options[i])], sums[i]);
    }
  }
  Json results = Json::array();
  for (std::size_t i = 0; i < arms.size(); ++i) {
    const ArmSums& sum = sums[i];
    Json result = {{"united", sum.united.json()}, {"kv_tokens", sum.kv_tokens / sum.kv_rows}};
    result["by_layer"]["united"] = by_layer(sum.united_by_layer);
    if (has_own_budgets(options[i])) {
      result["alone"] = sum.alone.json();
      result["by_layer"]["alone"] = by_layer(sum.alone_by_layer);
    }
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace tactic::program
