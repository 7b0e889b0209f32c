// Table 1, Figures 4 and 7: how many tokens hold P, in exact order, in cluster order, and by the method's own estimate.
#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <numeric>

#include "core/error.h"
#include "eval.h"
#include "eval/statistics.h"
#include "eval_attention.h"
#include "interrupt.h"
#include "select/paper_fit.h"
#include "select/select.h"
#include "session.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

LayerClusters::LayerClusters(const WindowAttention& window, int layer, const Options& options, int threads)
    : team_(make_thread_team(threads)),
      workspace_(make_workspace()),
      sequence_({.layers = 1, .shape = window.shape, .params = window.params, .rotary = window.rotary, .options = options}) {
  const LayerAttention& at = window.layers[static_cast<std::size_t>(layer)];
  sequence_.observe(0, at.prompt_q.data(), window.prompt_queries, window.row(), window.shape.head_dim);
  sequence_.update(*team_, *workspace_, 0, window.kv(layer, window.prompt_tokens), true);
  if (index().segments.empty()) {
    throw Error(Status::invalid_argument,
                "windows are too short to be clustered: pass a larger --context, or --set min_context=0");
  }
}

std::int64_t tokens_for(std::span<const std::int32_t> order, std::span<const double> weights, double wanted) {
  double sum = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    sum += weights[static_cast<std::size_t>(order[i])];
    if (sum >= wanted) return static_cast<std::int64_t>(i) + 1;
  }
  return static_cast<std::int64_t>(order.size());
}

namespace {

std::vector<std::int32_t> exact_order(std::span<const double> weights) {
  std::vector<std::int32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const double x = weights[static_cast<std::size_t>(a)];
    const double y = weights[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  });
  return order;
}

// What the select room knows of one KV head in one step.
struct HeadEstimate {
  std::vector<float> logits, mass, half, exact;  // [G, stride], [G, stride], [G, parts], [G, stride]
  std::vector<float> fixed, reference;           // [G] of the always-attended tokens; the scale of masses
  std::vector<std::uint8_t> chosen;
  std::vector<std::int32_t> list;
};

double score(const HeadEstimate& head, const HeadTable& table, const Options& options, int g, int c) {
  const auto at = static_cast<std::size_t>(g * table.stride + c);
  if (options.method == Method::paper || !options.spread) return static_cast<double>(head.logits[at]);
  const auto part = static_cast<std::size_t>(table.part_of[static_cast<std::size_t>(c)]);
  const auto spread = static_cast<double>(table.spread[static_cast<std::size_t>(c)]);
  return static_cast<double>(head.logits[at]) +
         static_cast<double>(head.half[static_cast<std::size_t>(g) * table.parts.size() + part]) * spread;
}

TokenOrder order_of(const HeadEstimate& head, const HeadTable& table, const LayerIndex& index, const Options& options, int g,
                    std::int64_t tokens) {
  TokenOrder order;
  for (std::int64_t t = 0; t < index.first(); ++t) order.tokens.push_back(static_cast<std::int32_t>(t));
  for (std::int64_t t = index.last(); t < tokens; ++t) order.tokens.push_back(static_cast<std::int32_t>(t));
  order.always = static_cast<std::int64_t>(order.tokens.size());
  order.clusters.resize(static_cast<std::size_t>(table.count));
  std::iota(order.clusters.begin(), order.clusters.end(), 0);
  std::vector<double> key(order.clusters.size());
  for (int c = 0; c < table.count; ++c) key[static_cast<std::size_t>(c)] = score(head, table, options, g, c);
  std::stable_sort(order.clusters.begin(), order.clusters.end(), [&](std::int32_t a, std::int32_t b) {
    return key[static_cast<std::size_t>(a)] > key[static_cast<std::size_t>(b)];
  });
  for (const std::int32_t c : order.clusters) {
    const auto& of = table.tokens[static_cast<std::size_t>(c)];
    order.tokens.insert(order.tokens.end(), of.begin(), of.end());
    order.ends.push_back(static_cast<std::int64_t>(order.tokens.size()));
  }
  return order;
}

// One clustering of a layer and what its arms share in a step.
class ClusteredStep {
 public:
  ClusteredStep(const WindowAttention& window, int layer, int step, LayerClusters& clusters, const Options& options)
      : window_(window),
        clusters_(clusters),
        options_(options),
        kv_(window.kv(layer, window.prompt_tokens + step + 1)),
        query_{window.query(layer, step, 0), window.shape, window.params} {}

  const HeadTable& table(int kv_head) const { return clusters_.index().tables[static_cast<std::size_t>(kv_head)]; }
  const KvView& kv() const { return kv_; }
  HeadEstimate estimate(int kv_head, const std::vector<std::vector<double>>& weights) const;
  TokenOrder order(const HeadEstimate& head, int kv_head, int g) const {
    return order_of(head, table(kv_head), clusters_.index(), options_, g, kv_.tokens);
  }
  // Clustered tokens that query head g alone takes for P.
  std::vector<std::int64_t> budgets(HeadEstimate& head, int kv_head, double mass,
                                    const std::vector<std::vector<double>>& weights) const;
  // Attended by each KV head for P, as a bitmap; [kv_heads] counts.
  std::vector<std::int64_t> attend(double mass, std::vector<std::uint64_t>& bits) const;

 private:
  std::int64_t budget_alone(HeadEstimate& head, int kv_head, int g, double mass, std::span<const double> weights) const;

  const WindowAttention& window_;
  LayerClusters& clusters_;
  const Options& options_;
  KvView kv_;
  Query query_;
};

// Masses are relative to the largest exact weight of the head, which is 1 in `weights`: only their ratios count.
HeadEstimate ClusteredStep::estimate(int kv_head, const std::vector<std::vector<double>>& weights) const {
  const HeadTable& t = table(kv_head);
  const int group = window_.shape.group();
  HeadEstimate head;
  const auto size = static_cast<std::size_t>(group * t.stride);
  head.logits.resize(size);
  head.mass.resize(size);
  head.exact.resize(size);
  head.half.resize(static_cast<std::size_t>(group) * t.parts.size());
  head.chosen.resize(static_cast<std::size_t>(t.stride));
  head.list.resize(static_cast<std::size_t>(t.count));
  score_centroids(query_, kv_head, t, 0, t.count, head.logits.data());
  half_variances(query_, kv_head, t, head.half.data());
  for (int g = 0; g < group; ++g) {
    // The heaviest token's logit fixes the scale: its weight is 1.
    const std::vector<double>& w = weights[static_cast<std::size_t>(kv_head * group + g)];
    const auto heaviest = static_cast<std::size_t>(std::max_element(w.begin(), w.end()) - w.begin());
    const auto id = static_cast<std::int32_t>(heaviest);
    std::vector<float> logit(static_cast<std::size_t>(group));
    reference::score_list(query_, kv_, kv_head, {&id, 0, 1}, logit.data(), 1);
    head.reference.push_back(logit[static_cast<std::size_t>(g)]);
    double fixed = 0;
    for (std::int64_t token = 0; token < clusters_.index().first(); ++token) fixed += w[static_cast<std::size_t>(token)];
    for (std::int64_t token = clusters_.index().last(); token < kv_.tokens; ++token) fixed += w[static_cast<std::size_t>(token)];
    head.fixed.push_back(static_cast<float>(fixed));
  }
  return head;
}

// Choose, correct by exact masses, choose again: `tactic` for one query head by itself, with goal mass whatever the arm's goal
// is, since the question is how many tokens hold P.
std::int64_t ClusteredStep::budget_alone(HeadEstimate& head, int kv_head, int g, double mass,
                                         std::span<const double> weights) const {
  const HeadTable& t = table(kv_head);
  const auto offset = static_cast<std::size_t>(g * t.stride);
  float* masses = head.mass.data() + offset;
  float* exact = head.exact.data() + offset;
  const auto target = static_cast<float>(mass);
  const float* fixed = &head.fixed[static_cast<std::size_t>(g)];
  SelectScratch scratch;
  std::fill(head.chosen.begin(), head.chosen.end(), std::uint8_t{0});
  const int first = choose(t, 1, masses, fixed, &target, false, head.chosen.data(), head.list.data(), nullptr, scratch);
  int all = first;
  if (options_.verify && first > 0) {
    const std::span<const std::int32_t> chosen(head.list.data(), static_cast<std::size_t>(first));
    for (const std::int32_t c : chosen) {
      double sum = 0;
      for (const std::int32_t token : t.tokens[static_cast<std::size_t>(c)]) sum += weights[static_cast<std::size_t>(token)];
      exact[c] = static_cast<float>(sum);
    }
    float factor = 1;
    if (options_.tail_factor) tail_factors(t, 1, masses, exact, chosen, &factor, scratch);
    for (int c = 0; c < t.count; ++c) masses[c] *= factor;
    for (const std::int32_t c : chosen) masses[c] = exact[c];
    all += choose(t, 1, masses, fixed, &target, false, head.chosen.data(), head.list.data() + first, nullptr, scratch);
  }
  std::int64_t tokens = 0;
  for (int i = 0; i < all; ++i)
    tokens += static_cast<std::int64_t>(t.tokens[static_cast<std::size_t>(head.list[static_cast<std::size_t>(i)])].size());
  return tokens;
}

std::vector<std::int64_t> ClusteredStep::budgets(HeadEstimate& head, int kv_head, double mass,
                                                 const std::vector<std::vector<double>>& weights) const {
  const HeadTable& t = table(kv_head);
  const int group = window_.shape.group();
  std::vector<std::int64_t> budget(static_cast<std::size_t>(group));
  if (options_.method == Method::paper) {
    Options options = options_;
    options.mass = static_cast<float>(mass);
    std::vector<std::uint64_t> bitmap(static_cast<std::size_t>((kv_.tokens + 63) / 64));
    std::vector<float> estimated(static_cast<std::size_t>(group));
    SelectScratch scratch;
    choose_paper(query_, kv_, kv_head, t, head.logits.data(), head.fixed.data(), head.reference.data(), options, bitmap.data(),
                 budget.data(), estimated.data(), nullptr, scratch);
    return budget;
  }
  estimate_masses(t, group, head.logits.data(), options_.spread ? head.half.data() : nullptr, head.reference.data(),
                  head.mass.data());
  for (int g = 0; g < group; ++g) {
    budget[static_cast<std::size_t>(g)] =
        budget_alone(head, kv_head, g, mass, weights[static_cast<std::size_t>(kv_head * group + g)]);
  }
  return budget;
}

std::vector<std::int64_t> ClusteredStep::attend(double mass, std::vector<std::uint64_t>& bits) const {
  const Shape& shape = window_.shape;
  std::vector<std::int64_t> attended(static_cast<std::size_t>(shape.kv_heads));
  std::vector<std::int64_t> budget(static_cast<std::size_t>(shape.q_heads));
  std::vector<float> estimated(static_cast<std::size_t>(shape.q_heads));
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.v_head_dim));
  bits.assign(attended.size() * static_cast<std::size_t>((kv_.tokens + 63) / 64), 0);
  StepReport report;
  report.attended = attended;
  report.budget = budget;
  report.estimated_mass = estimated;
  report.token_bits = bits;
  const Status status = clusters_.sequence().attend(clusters_.team(), clusters_.workspace(), 0, query_.q, kv_, nullptr,
                                                    out.data(), nullptr, &report, static_cast<float>(mass));
  if (status != Status::ok) throw Error(status, "the window holds values that are not finite: choose another model or text");
  return attended;
}

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

// What a clustering depends on: arms that agree share it.
std::string clustering_of(const Options& o) {
  return std::to_string(static_cast<int>(o.method)) + "/" + std::to_string(o.cluster_size) + "/" + std::to_string(o.iterations) +
         "/" + std::to_string(o.segment_tokens) + "/" + std::to_string(static_cast<int>(o.metric)) + "/" +
         std::to_string(o.shrinkage) + "/" + std::to_string(o.int8_centroids) + "/" + std::to_string(o.seed) + "/" +
         std::to_string(o.sink_tokens) + "/" + std::to_string(o.recent_tokens) + "/" + (o.promise ? std::to_string(o.mass) : "") +
         std::to_string(o.verify) + std::to_string(o.spread) + std::to_string(o.joint) + std::to_string(o.tail_factor) +
         std::to_string(static_cast<int>(o.goal));
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
  for (const ArmSums& sum : sums) {
    Json by_layer = Json::array();
    for (std::size_t layer = 0; layer < window.layers.size(); ++layer)
      by_layer.push_back({{"alone", sum.alone_by_layer[layer].json()}, {"united", sum.united_by_layer[layer].json()}});
    results.push_back({{"alone", sum.alone.json()},
                       {"united", sum.united.json()},
                       {"kv_tokens", sum.kv_tokens / sum.kv_rows},
                       {"by_layer", by_layer}});
  }
  return results;
}

Json measure_sparsity(EvalRun& /*run*/, const WindowAttention& window, std::span<const Arm* const> arms) {
  std::vector<Json> tokens(arms.size(), Json::array());  // [layers][q_heads][steps]
  std::vector<double> weights;
  for (int layer = 0; layer < static_cast<int>(window.layers.size()); ++layer) {
    for (Json& all : tokens) all.push_back(Json::array());
    for (int head = 0; head < window.shape.q_heads; ++head) {
      if (interrupted()) throw Interrupted{};
      for (Json& all : tokens) all.back().push_back(Json::array());
      for (int step = 0; step < window.steps; ++step) {
        const double total = exact_weights(window, layer, step, head, weights);
        const std::vector<std::int32_t> order = exact_order(weights);
        for (std::size_t i = 0; i < arms.size(); ++i)
          tokens[i].back().back().push_back(tokens_for(order, weights, arms[i]->mass * total));
      }
    }
  }
  Json results = Json::array();
  for (const Json& all : tokens) results.push_back({{"context", window.prompt_tokens}, {"tokens", all}});
  return results;
}

namespace {

constexpr int kCurvePoints = 60;  // of Figure 7, evenly spaced in the logarithm of the place

Json curve_of(const WindowAttention& window, int layer, int head, const Options& options, LayerClusters& clusters) {
  const int step = window.steps - 1;
  std::vector<std::vector<double>> weights(static_cast<std::size_t>(window.shape.q_heads));
  double total = 0;
  for (int q = 0; q < window.shape.q_heads; ++q) {
    const double sum = exact_weights(window, layer, step, q, weights[static_cast<std::size_t>(q)]);
    if (q == head) total = sum;
  }
  const int kv_head = head / window.shape.group();
  const ClusteredStep at(window, layer, step, clusters, options);
  const HeadEstimate estimate = at.estimate(kv_head, weights);
  const TokenOrder order = at.order(estimate, kv_head, head % window.shape.group());
  const std::vector<double>& w = weights[static_cast<std::size_t>(head)];
  const auto ordered = std::span<const std::int32_t>(order.tokens).subspan(static_cast<std::size_t>(order.always));
  const auto n = static_cast<std::int64_t>(ordered.size());
  const auto mean = [&](std::int64_t begin, std::int64_t end) {
    double sum = 0;
    for (std::int64_t i = begin; i < end; ++i) sum += w[static_cast<std::size_t>(ordered[static_cast<std::size_t>(i)])];
    return sum / static_cast<double>(std::max<std::int64_t>(1, end - begin));
  };
  const FitPlaces p = fit_places(n, options);
  const Fit fit = fit_curve(static_cast<double>(p.first), mean(p.first_begin, p.first_end), static_cast<double>(p.second),
                            mean(p.second_begin, p.second_end));
  Json places = Json::array(), exact = Json::array(), fitted = Json::array();
  std::int64_t begin = 0;
  for (int i = 1; i <= kCurvePoints; ++i) {
    const auto end =
        static_cast<std::int64_t>(std::round(std::pow(static_cast<double>(n), static_cast<double>(i) / kCurvePoints)));
    if (end <= begin) continue;
    const double x = (static_cast<double>(begin) + static_cast<double>(end) + 1) / 2;
    places.push_back(x);
    exact.push_back(mean(begin, end) / total);
    fitted.push_back(std::max(fit.a / x + fit.b, 0.0) / total);
    begin = end;
  }
  double tail = 0;
  double fitted_tail = 0;
  for (std::int64_t i = p.head; i < n; ++i) {
    tail += w[static_cast<std::size_t>(ordered[static_cast<std::size_t>(i)])];
    fitted_tail += std::max(fit.a / static_cast<double>(i + 1) + fit.b, 0.0);
  }
  return {{"layer", layer},
          {"head", head},
          {"place", places},
          {"exact", exact},
          {"fitted", fitted},
          {"tail_mass", tail / total},
          {"fitted_tail_mass", fitted_tail / total}};
}

}  // namespace

Json measure_fit(EvalRun& run, const WindowAttention& window, std::span<const Arm* const> arms) {
  Json results = Json::array();
  const auto layers = static_cast<int>(window.layers.size());
  for (const Arm* arm : arms) {
    const Options options = options_of(run.engine(), *arm);
    Json curves = Json::array();
    for (int layer = 0; layer < layers; ++layer) {
      if (interrupted()) throw Interrupted{};
      LayerClusters clusters(window, layer, options, run.engine().threads());
      curves.push_back(curve_of(window, layer, layer % window.shape.q_heads, options, clusters));
    }
    results.push_back({{"curves", curves}});
  }
  return results;
}

}  // namespace tactic::program
