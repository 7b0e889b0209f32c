// One step of one layer on exact weights: clusters as an arm makes them, their order, what the arm takes and attends.
#include "eval_clustered.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace tactic::program {

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

namespace {

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

}  // namespace

TokenOrder ClusteredStep::order(const HeadEstimate& head, int kv_head, int g) const {
  return order_of(head, table(kv_head), clusters_.index(), options_, g, kv_.tokens);
}

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

// Choose, correct by exact masses, choose again: `tactic` for one query head by itself. For goal mass: goal error weighs a KV
// head's query heads and V together and has no budget of a head alone.
std::int64_t ClusteredStep::budget_alone(HeadEstimate& head, int kv_head, int g, double mass,
                                         std::span<const double> weights) const {
  const HeadTable& t = table(kv_head);
  const auto offset = static_cast<std::size_t>(g * t.stride);
  float* masses = head.mass.data() + offset;
  float* exact = head.exact.data() + offset;
  const std::vector<float>& margins = clusters_.index().margin;
  const float margin = margins.empty() ? 1.0f : margins[static_cast<std::size_t>(kv_head)];
  if (margin < 0) return clusters_.index().last() - clusters_.index().first();  // promise mode: attended densely
  const auto target = static_cast<float>(1 - static_cast<double>(margin) * (1 - mass));
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

}  // namespace tactic::program
