// Figures 2 and 6: norms of V; how much of the keys' variance k-means and pages of consecutive tokens explain.
#include <algorithm>
#include <cmath>

#include "core/half.h"
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

std::vector<double> row_of(const KvView& kv, const Rows& rows, std::int64_t token, int head) {
  std::vector<double> values(static_cast<std::size_t>(rows.dim));
  const std::byte* bytes = row(kv, rows, token, head);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(load_element(bytes, rows.type, i));
  return values;
}

double squared_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

// Sum over the groups of squared distances to the group's mean.
class WithinGroups {
 public:
  explicit WithinGroups(const std::vector<std::vector<double>>& keys) : keys_(keys) {}

  template <class Tokens>
  void add(const Tokens& tokens, std::int64_t first) {
    std::vector<double> mean(keys_.front().size());
    for (const auto t : tokens) {
      const auto& key = keys_[static_cast<std::size_t>(t - first)];
      for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += key[i] / static_cast<double>(tokens.size());
    }
    for (const auto t : tokens) sum_ += squared_distance(keys_[static_cast<std::size_t>(t - first)], mean);
  }
  double sum() const { return sum_; }

 private:
  const std::vector<std::vector<double>>& keys_;
  double sum_ = 0;
};

// Shares of the variance of a KV head's keys that lie between groups: k-means', and pages of as many consecutive tokens.
Json explained(const WindowAttention& window, int layer, int kv_head, const LayerIndex& index, int page) {
  const KvView kv = window.kv(layer, window.prompt_tokens);
  std::vector<std::vector<double>> keys;
  for (std::int64_t t = index.first(); t < index.last(); ++t) keys.push_back(row_of(kv, kv.k, t, kv_head));
  WithinGroups all(keys);
  WithinGroups pages(keys);
  WithinGroups clusters(keys);
  std::vector<std::int64_t> every(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) every[i] = index.first() + static_cast<std::int64_t>(i);
  all.add(every, index.first());
  for (std::size_t at = 0; at < every.size(); at += static_cast<std::size_t>(page)) {
    pages.add(std::span(every).subspan(at, std::min(static_cast<std::size_t>(page), every.size() - at)), index.first());
  }
  for (const auto& tokens : index.tables[static_cast<std::size_t>(kv_head)].tokens) clusters.add(tokens, index.first());
  return {{"clusters", 1 - clusters.sum() / all.sum()}, {"pages", 1 - pages.sum() / all.sum()}};
}

}  // namespace

Json measure_values(EvalRun& /*run*/, const WindowAttention& window, std::span<const Arm* const> arms) {
  Json heads = Json::array();
  for (int layer = 0; layer < static_cast<int>(window.layers.size()); ++layer) {
    if (interrupted()) throw Interrupted{};
    const KvView kv = window.kv(layer, window.prompt_tokens);
    for (int head = 0; head < window.shape.kv_heads; ++head) {
      std::vector<double> norms;
      for (std::int64_t t = 0; t < kv.tokens; ++t) {
        double sum = 0;
        for (const double v : row_of(kv, kv.v, t, head)) sum += v * v;
        norms.push_back(std::sqrt(sum));
      }
      const double first = norms.front();
      norms.erase(norms.begin());
      const double mean = eval::mean_of(norms);
      heads.push_back({{"layer", layer},
                       {"kv_head", head},
                       {"mean", mean},
                       {"variation", std::sqrt(eval::variance_of(norms)) / mean},
                       {"p1", eval::quantile_of(norms, 0.01)},
                       {"p99", eval::quantile_of(norms, 0.99)},
                       {"first_token", first}});
    }
  }
  return Json(arms.size(), Json{{"heads", heads}});
}

Json measure_grouping(EvalRun& run, const WindowAttention& window, std::span<const Arm* const> arms) {
  Json results = Json::array();
  for (const Arm* arm : arms) {
    const Options options = options_of(run.engine(), *arm);
    Json heads = Json::array();
    for (int layer = 0; layer < static_cast<int>(window.layers.size()); ++layer) {
      if (interrupted()) throw Interrupted{};
      const LayerClusters clusters(window, layer, options, run.engine().threads());
      for (int head = 0; head < window.shape.kv_heads; ++head) {
        Json shares = explained(window, layer, head, clusters.index(), options.cluster_size);
        shares["layer"] = layer;
        shares["kv_head"] = head;
        heads.push_back(std::move(shares));
      }
    }
    results.push_back({{"page", options.cluster_size}, {"heads", heads}});
  }
  return results;
}

}  // namespace tactic::program
