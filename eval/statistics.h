// Confidence of means and differences: bootstrap over clusters, paired tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tactic::eval {

struct Interval {
  double mean = 0;
  double low = 0;  // 95% percentile bootstrap
  double high = 0;
};

constexpr int kBootstrapRounds = 2000;  // the ends of a 95% interval then vary by about 1% of its width

// Mean of `values`; whole clusters are drawn with replacement. cluster[i] says to which value i belongs (windows of one book,
// steps of one window). A cluster's values weigh in as they are. Fewer than two clusters: low = high = mean.
Interval bootstrap(std::span<const double> values, std::span<const int> cluster, std::uint64_t seed = 1);
// Every value its own cluster.
Interval bootstrap(std::span<const double> values, std::uint64_t seed = 1);
// Of a[i] - b[i]: paired, both measured on the same sample.
Interval paired_bootstrap(std::span<const double> a, std::span<const double> b, std::span<const int> cluster,
                          std::uint64_t seed = 1);

// McNemar's exact test: `only_a` samples that a solves and b does not, `only_b` the reverse. Two-sided p.
double mcnemar(int only_a, int only_b);

double mean_of(std::span<const double> values);
double variance_of(std::span<const double> values);                // with n - 1; 0 for fewer than two
double quantile_of(std::span<const double> values, double share);  // nearest rank; 0 for none

// To so many significant digits: what a plot needs, in a journal of thousands of lines.
double rounded(double value, int digits);

}  // namespace tactic::eval
