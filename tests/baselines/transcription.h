// The methods once more, from their definitions alone: double precision, full sorts, one thread, nothing shared with
// src/baselines.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "cases.h"

namespace tactic::test {

class Transcription {
 public:
  explicit Transcription(WatchedCase& layer)
      : layer_(layer), s_(layer.shape()), n_(layer.prompt()), scale_(static_cast<double>(layer.kv().params().scale)) {}

  // softmax over tokens 0 .. token of the query of (token, head), or of the first `count` tokens.
  std::vector<double> weights(std::int64_t token, int head, std::int64_t count) {
    std::vector<double> w;
    for (std::int64_t t = 0; t < count; ++t) w.push_back(std::exp(scale_ * dot(token, head, t)));
    const double sum = std::accumulate(w.begin(), w.end(), 0.0);
    for (double& x : w) x /= sum;
    return w;
  }

  // [kv_heads][n - window]
  std::vector<std::vector<double>> snap_scores(int window, int kernel) {
    std::vector<std::vector<double>> scores;
    for (int h = 0; h < s_.kv_heads; ++h) {
      std::vector<double> mean(static_cast<std::size_t>(n_ - window), 0.0), pooled;
      for (int g = 0; g < s_.group(); ++g) {
        for (std::int64_t token = n_ - window; token < n_; ++token) {
          const auto w = weights(token, h * s_.group() + g, token + 1);
          for (std::size_t t = 0; t < mean.size(); ++t) mean[t] += w[t] / s_.group();
        }
      }
      for (int t = 0; t < static_cast<int>(mean.size()); ++t) {
        double most = 0;
        for (int i = std::max(0, t - kernel / 2); i <= std::min(static_cast<int>(mean.size()) - 1, t + kernel / 2); ++i)
          most = std::max(most, mean[static_cast<std::size_t>(i)]);
        pooled.push_back(most);
      }
      scores.push_back(pooled);
    }
    return scores;
  }

  static std::vector<std::int32_t> best(const std::vector<double>& scores, std::int64_t count) {
    std::vector<std::int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      // Values that f32 cannot tell apart are ties.
      return static_cast<float>(scores[static_cast<std::size_t>(a)]) > static_cast<float>(scores[static_cast<std::size_t>(b)]);
    });
    order.resize(std::min(order.size(), static_cast<std::size_t>(count)));
    std::sort(order.begin(), order.end());
    return order;
  }

  Lists snapkv(std::int64_t capacity, int window, int kernel) {
    Lists lists;
    for (const auto& scores : snap_scores(window, kernel))
      lists.push_back(with_range(best(scores, capacity - window), n_ - window));
    return lists;
  }

  Lists ada(std::int64_t capacity, int window, int kernel) {
    const auto scores = snap_scores(window, kernel);
    const std::int64_t b = capacity - window;
    std::vector<double> all;
    for (const auto& head : scores) all.insert(all.end(), head.begin(), head.end());
    std::vector<int> c(scores.size(), 0);
    for (const std::int32_t place : best(all, b * s_.kv_heads)) ++c[static_cast<std::size_t>(place / (n_ - window))];
    Lists lists;
    for (std::size_t h = 0; h < scores.size(); ++h) {
      const double own = std::nearbyint(0.8 * c[h] + std::floor(0.2 * static_cast<double>(b) + 1e-9));
      lists.push_back(with_range(best(scores[h], static_cast<std::int64_t>(own)), n_ - window));
    }
    return lists;
  }

  Lists h2o(std::int64_t budget) {
    const std::int64_t recent = budget / 2;
    Lists lists;
    for (int h = 0; h < s_.kv_heads; ++h) {
      std::vector<double> sum(static_cast<std::size_t>(n_), 0.0);
      for (int g = 0; g < s_.group(); ++g) {
        for (std::int64_t token = 0; token < n_; ++token) {
          const auto w = weights(token, h * s_.group() + g, token + 1);
          for (std::size_t t = 0; t < w.size(); ++t) sum[t] += w[t];
        }
      }
      sum.resize(static_cast<std::size_t>(n_ - recent));
      lists.push_back(with_range(best(sum, budget - recent), n_ - recent));
    }
    return lists;
  }

  // heads: those that choose together, of one KV head.
  std::vector<std::int32_t> quest(std::int64_t token, const std::vector<int>& heads, std::int64_t budget, int page) {
    const int pages = static_cast<int>((n_ + page - 1) / page);
    std::vector<double> scores(static_cast<std::size_t>(pages), 0.0);
    for (int p = 0; p < pages; ++p) {
      for (const int head : heads) scores[static_cast<std::size_t>(p)] += bound(token, head, p, page);
    }
    const std::int64_t wanted = std::max<std::int64_t>(3, budget / page);
    const auto current = static_cast<std::size_t>(token / page);
    if (current < scores.size()) scores[current] = 1e30;
    std::vector<std::int32_t> list;
    for (const std::int32_t p : best(scores, wanted)) {
      for (int t = p * page; t < std::min(static_cast<int>(n_), (p + 1) * page); ++t) list.push_back(t);
    }
    return list;
  }

  std::vector<std::int32_t> top_k(std::int64_t token, const std::vector<int>& heads, std::int64_t budget) {
    auto sum = summed(token, heads);
    sum.resize(static_cast<std::size_t>(n_));
    return best(sum, budget);
  }

  std::vector<std::int32_t> top_p(std::int64_t token, int head, double mass) {
    const auto w = weights(token, head, token + 1);
    double reached = std::accumulate(w.begin() + static_cast<std::ptrdiff_t>(n_), w.end(), 0.0);
    std::vector<double> prompt(w.begin(), w.begin() + static_cast<std::ptrdiff_t>(n_));
    std::int64_t count = 0;
    std::vector<double> sorted = prompt;
    std::sort(sorted.rbegin(), sorted.rend());
    while (reached < mass && count < n_) reached += sorted[static_cast<std::size_t>(count++)];
    return best(prompt, count);
  }

 private:
  double dot(std::int64_t token, int head, std::int64_t t) {
    const float* q = layer_.query(token) + head * s_.head_dim;
    const auto& k = key(t, head / s_.group());
    double sum = 0;
    for (int i = 0; i < s_.head_dim; ++i) sum += static_cast<double>(q[i]) * static_cast<double>(k[static_cast<std::size_t>(i)]);
    return sum;
  }
  const std::vector<float>& key(std::int64_t t, int h) {
    if (keys_.empty()) {
      for (std::int64_t token = 0; token < layer_.kv().spec().tokens; ++token) {
        for (int head = 0; head < s_.kv_heads; ++head) keys_.push_back(layer_.kv().k(token, head));
      }
    }
    return keys_[static_cast<std::size_t>(t * s_.kv_heads + h)];
  }
  double bound(std::int64_t token, int head, int p, int page) {
    const float* q = layer_.query(token) + head * s_.head_dim;
    double sum = 0;
    for (int i = 0; i < s_.head_dim; ++i) {
      double low = 1e30, high = -1e30;
      for (std::int64_t t = p * page; t < std::min<std::int64_t>(token + 1, (p + 1) * page); ++t) {
        const double x = static_cast<double>(key(t, head / s_.group())[static_cast<std::size_t>(i)]);
        low = std::min(low, x);
        high = std::max(high, x);
      }
      sum += std::max(static_cast<double>(q[i]) * low, static_cast<double>(q[i]) * high);
    }
    return sum;
  }
  std::vector<double> summed(std::int64_t token, const std::vector<int>& heads) {
    std::vector<double> sum(static_cast<std::size_t>(token + 1), 0.0);
    for (const int head : heads) {
      const auto w = weights(token, head, token + 1);
      for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += w[t];
    }
    return sum;
  }
  std::vector<std::int32_t> with_range(std::vector<std::int32_t> list, std::int64_t first) const {
    for (std::int64_t t = first; t < n_; ++t) list.push_back(static_cast<std::int32_t>(t));
    return list;
  }

  WatchedCase& layer_;
  Shape s_;
  std::int64_t n_;
  double scale_;
  std::vector<std::vector<float>> keys_;
};

}  // namespace tactic::test
