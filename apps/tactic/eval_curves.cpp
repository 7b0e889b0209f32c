// Figures 4 and 7: fewest tokens that hold P; weights in cluster order beside the fitted curve.
#include <algorithm>
#include <cmath>

#include "eval.h"
#include "eval/statistics.h"
#include "eval_attention.h"
#include "eval_clustered.h"
#include "interrupt.h"
#include "select/paper_fit.h"
#include "session.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

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

constexpr int kDigits = 5;        // of a point
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
    exact.push_back(eval::rounded(mean(begin, end) / total, kDigits));
    fitted.push_back(eval::rounded(std::max(fit.a / x + fit.b, 0.0) / total, kDigits));
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
