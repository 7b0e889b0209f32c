// Figures 2 and 6: norms of V; how much of the keys' variance k-means and pages of consecutive tokens explain.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

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

// Shares of the rows' variance that lie between groups: k-means', and pages of as many consecutive tokens. Row i is of token
// index.first() + i.
std::pair<double, double> shares(const std::vector<std::vector<double>>& rows, const LayerIndex& index, int kv_head, int page) {
  WithinGroups all(rows);
  WithinGroups pages(rows);
  WithinGroups clusters(rows);
  std::vector<std::int64_t> every(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) every[i] = index.first() + static_cast<std::int64_t>(i);
  all.add(every, index.first());
  for (std::size_t at = 0; at < every.size(); at += static_cast<std::size_t>(page)) {
    pages.add(std::span(every).subspan(at, std::min(static_cast<std::size_t>(page), every.size() - at)), index.first());
  }
  for (const auto& tokens : index.tables[static_cast<std::size_t>(kv_head)].tokens) clusters.add(tokens, index.first());
  return {1 - clusters.sum() / all.sum(), 1 - pages.sum() / all.sum()};
}

// Of the keys, and of what queries see of them: their scores q . k for the group's heads in every step.
Json explained(const WindowAttention& window, int layer, int kv_head, const LayerIndex& index, int page) {
  const KvView kv = window.kv(layer, window.prompt_tokens);
  const int group = window.shape.group();
  std::vector<std::vector<double>> keys;
  std::vector<std::vector<double>> scores;
  for (std::int64_t t = index.first(); t < index.last(); ++t) {
    keys.push_back(row_of(kv, kv.k, t, kv_head));
    const std::vector<double>& key = keys.back();
    std::vector<double>& seen = scores.emplace_back();
    for (int step = 0; step < window.steps; ++step) {
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float* q = window.query(layer, step, head);
        seen.push_back(std::inner_product(key.begin(), key.end(), q, 0.0));
      }
    }
  }
  const auto [clusters, pages] = shares(keys, index, kv_head, page);
  const auto [score_clusters, score_pages] = shares(scores, index, kv_head, page);
  return {{"clusters", clusters}, {"pages", pages}, {"score_clusters", score_clusters}, {"score_pages", score_pages}};
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
        Json head_shares = explained(window, layer, head, clusters.index(), options.cluster_size);
        head_shares["layer"] = layer;
        head_shares["kv_head"] = head;
        heads.push_back(std::move(head_shares));
      }
    }
    results.push_back({{"page", options.cluster_size}, {"heads", heads}});
  }
  return results;
}

}  // namespace tactic::program
