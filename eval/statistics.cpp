// Confidence of means and differences.
#include "statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "random.h"

namespace tactic::eval {

double mean_of(std::span<const double> values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double variance_of(std::span<const double> values) {
  if (values.size() < 2) return 0;
  const double mean = mean_of(values);
  double sum = 0;
  for (const double v : values) sum += (v - mean) * (v - mean);
  return sum / static_cast<double>(values.size() - 1);
}

double quantile_of(std::span<const double> values, double share) {
  if (values.empty()) return 0;
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<std::size_t>(rank, 1, sorted.size()) - 1];
}

Interval bootstrap(std::span<const double> values, std::span<const int> cluster, std::uint64_t seed) {
  Interval interval;
  interval.mean = interval.low = interval.high = mean_of(values);
  std::map<int, std::pair<double, double>> sums;  // cluster: sum, count
  for (std::size_t i = 0; i < values.size(); ++i) {
    sums[cluster[i]].first += values[i];
    sums[cluster[i]].second += 1;
  }
  if (sums.size() < 2) return interval;
  std::vector<std::pair<double, double>> clusters;
  for (const auto& [number, sum] : sums) clusters.push_back(sum);
  Random random(seed);
  std::vector<double> means;
  for (int round = 0; round < kBootstrapRounds; ++round) {
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < clusters.size(); ++i) {
      const auto& drawn = clusters[random.below(clusters.size())];
      sum += drawn.first;
      count += drawn.second;
    }
    means.push_back(sum / count);
  }
  interval.low = quantile_of(means, 0.025);
  interval.high = quantile_of(means, 0.975);
  return interval;
}

Interval bootstrap(std::span<const double> values, std::uint64_t seed) {
  std::vector<int> own(values.size());
  std::iota(own.begin(), own.end(), 0);
  return bootstrap(values, own, seed);
}

Interval paired_bootstrap(std::span<const double> a, std::span<const double> b, std::span<const int> cluster,
                          std::uint64_t seed) {
  std::vector<double> difference(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return bootstrap(difference, cluster, seed);
}

double mcnemar(int only_a, int only_b) {
  const int n = only_a + only_b;
  if (n == 0) return 1;
  // P(X <= min) of a fair coin thrown n times, both sides.
  double log_sum = -INFINITY;
  for (int k = 0; k <= std::min(only_a, only_b); ++k) {
    const double term = std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) - n * std::log(2.0);
    const double top = std::max(log_sum, term);
    log_sum = top + std::log(std::exp(log_sum - top) + std::exp(term - top));
  }
  return std::min(1.0, 2 * std::exp(log_sum));
}

double rounded(double value, int digits) { return std::stod(fmt::format("{:.{}g}", value, digits)); }

}  // namespace tactic::eval
