// What the suites of clustering share: metrics from random queries, reading a segment back.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "cluster/cluster.h"
#include "core/half.h"
#include "support/kv.h"

namespace tactic::test {

inline Rotary make_rotary(Rotary::Layout layout, int pairs, double base = 1e4) {
  Rotary rotary{layout, {}};
  for (int p = 0; p < pairs; ++p) rotary.frequency.push_back(static_cast<float>(std::pow(base, -static_cast<double>(p) / pairs)));
  return rotary;
}

// [rows, dim], rows of a Gaussian with unequal, correlated elements.
inline std::vector<float> random_queries(int rows, int dim, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<std::size_t>(rows * dim));
  for (int r = 0; r < rows; ++r) {
    const float shared = normal(random);
    for (int i = 0; i < dim; ++i)
      q[static_cast<std::size_t>(r * dim + i)] = normal(random) * (1 + static_cast<float>(i % 5)) + shared;
  }
  return q;
}

inline MetricSpace random_metric(Metric kind, int dim, std::uint64_t seed) {
  const std::vector<float> q = random_queries(64, dim, seed);
  QueryMoment moment(dim);
  moment.add(q.data(), 64, 1, dim, 0);
  MetricSpace metric = make_metric(kind, moment, make_rotary(Rotary::Layout::interleaved, dim / 2), 0.1f);
  metric.dim = dim;
  return metric;
}

inline std::vector<MetricSpace> random_metrics(Metric kind, int dim, int heads) {
  std::vector<MetricSpace> metrics;
  for (int h = 0; h < heads; ++h) metrics.push_back(random_metric(kind, dim, static_cast<std::uint64_t>(h)));
  return metrics;
}

// y = L^T k.
inline std::vector<double> to_space(const MetricSpace& metric, const std::vector<float>& k) {
  const std::size_t d = k.size();
  std::vector<double> y(d, 0.0);
  for (std::size_t j = 0; j < d; ++j) {
    if (metric.kind == Metric::l2) y[j] = k[j];
    if (metric.kind == Metric::diagonal) y[j] = static_cast<double>(metric.factor[j]) * k[j];
    if (metric.kind == Metric::query) {
      for (std::size_t i = 0; i < d; ++i) y[j] += static_cast<double>(metric.factor[i * d + j]) * k[i];
    }
  }
  return y;
}

// The centroid as a reader of the segment sees it.
inline std::vector<float> centroid(const HeadClusters& head, int c, int dim) {
  std::vector<float> out(static_cast<std::size_t>(dim));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t at = static_cast<std::size_t>(c) * out.size() + i;
    out[i] = head.centroid8.empty() ? half_to_float(head.centroid16[at])
                                    : static_cast<float>(head.centroid8[at]) * head.centroid_scale[static_cast<std::size_t>(c)];
  }
  return out;
}

// Each token of [first, last) once, ascending inside clusters, none of them empty.
inline void expect_partition(const Segment& segment) {
  for (const HeadClusters& head : segment.heads) {
    std::vector<int> seen(static_cast<std::size_t>(segment.last - segment.first), 0);
    ASSERT_EQ(head.begin.size(), static_cast<std::size_t>(head.count) + 1);
    ASSERT_EQ(head.begin[0], 0);
    ASSERT_EQ(head.begin[static_cast<std::size_t>(head.count)], segment.last - segment.first);
    for (int c = 0; c < head.count; ++c) {
      ASSERT_GT(head.size(c), 0) << "cluster " << c;
      for (int i = head.begin[c]; i < head.begin[c + 1]; ++i) {
        const std::int32_t token = head.tokens[static_cast<std::size_t>(i)];
        ASSERT_TRUE(token >= segment.first && token < segment.last) << token;
        ++seen[static_cast<std::size_t>(token - segment.first)];
        if (i > head.begin[c]) {
          ASSERT_LT(head.tokens[static_cast<std::size_t>(i) - 1], token);
        }
      }
    }
    for (const int count : seen) ASSERT_EQ(count, 1);
  }
}

}  // namespace tactic::test
