// Clustering in scalar code with double sums, readable next to paper 4.2: the oracle of the tests.
#include <cassert>
#include <cmath>
#include <vector>

#include "cluster/cluster.h"
#include "cluster/segment.h"
#include "core/half.h"

namespace tactic::reference {
namespace {

using Matrix = std::vector<std::vector<double>>;  // [rows][dim]

Matrix load_rows(const KvView& kv, const Rows& rows, int head, std::int64_t first, std::int64_t last) {
  Matrix out;
  for (std::int64_t token = first; token < last; ++token) {
    const std::byte* source = row(kv, rows, token, head);
    std::vector<double>& values = out.emplace_back();
    for (int i = 0; i < rows.dim; ++i)
      values.push_back(static_cast<double>(load_element(source, rows.type, static_cast<std::size_t>(i))));
  }
  return out;
}

bool is_finite(const Matrix& rows) {
  for (const auto& values : rows) {
    for (const double x : values) {
      if (!std::isfinite(x)) return false;
    }
  }
  return true;
}

// y = L^T k.
std::vector<double> transform(const MetricSpace& metric, const std::vector<double>& k) {
  if (metric.kind == Metric::l2) return k;
  const std::size_t dim = k.size();
  std::vector<double> y(dim, 0.0);
  for (std::size_t j = 0; j < dim; ++j) {
    if (metric.kind == Metric::diagonal) {
      y[j] = static_cast<double>(metric.factor[j]) * k[j];
      continue;
    }
    for (std::size_t i = j; i < dim; ++i) y[j] += static_cast<double>(metric.factor[i * dim + j]) * k[i];
  }
  return y;
}

double squared_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

Matrix means(const Matrix& rows, const std::vector<std::int32_t>& nearest, const std::vector<std::int32_t>& sizes) {
  Matrix out(sizes.size(), std::vector<double>(rows.front().size(), 0.0));
  for (std::size_t t = 0; t < rows.size(); ++t) {
    const auto c = static_cast<std::size_t>(nearest[t]);
    for (std::size_t i = 0; i < rows[t].size(); ++i) out[c][i] += rows[t][i] / sizes[c];
  }
  return out;
}

// k-means: which cluster each of y's rows belongs to.
struct Assignment {
  std::vector<std::int32_t> nearest;  // [n]
  std::vector<std::int32_t> sizes;    // [C]
};

Assignment cluster(const Matrix& y, int count, int kv_head, const ClusterOptions& options) {
  const std::size_t n = y.size();
  std::vector<std::int32_t> scratch(n);
  const int drawn = drawn_count(count, options);
  draw_tokens(options.seed, kv_head, drawn, scratch);
  Matrix centroids;
  for (std::size_t c = 0; c < static_cast<std::size_t>(drawn); ++c) centroids.push_back(y[static_cast<std::size_t>(scratch[c])]);

  Assignment out{std::vector<std::int32_t>(n, -1), std::vector<std::int32_t>(centroids.size())};
  for (int iteration = 0;; ++iteration) {
    std::vector<float> distance(n);
    bool moved = false;
    for (std::size_t t = 0; t < n; ++t) {
      std::size_t best = 0;
      double smallest = squared_distance(y[t], centroids[0]);
      for (std::size_t c = 1; c < centroids.size(); ++c) {
        const double d = squared_distance(y[t], centroids[c]);
        if (d < smallest) {
          smallest = d;
          best = c;
        }
      }
      moved = moved || out.nearest[t] != static_cast<std::int32_t>(best);
      out.nearest[t] = static_cast<std::int32_t>(best);
      distance[t] = static_cast<float>(smallest);
    }
    // Before the last assignment: clusters on outliers, empty at first and so filled with the farthest tokens.
    if (iteration == options.iterations - 1) out.sizes.resize(static_cast<std::size_t>(count));
    count_sizes(out.nearest, out.sizes);
    repair_empty(out.nearest, out.sizes, distance, scratch);
    if ((!moved && drawn == count) || iteration == options.iterations) return out;
    centroids = means(y, out.nearest, out.sizes);
  }
}

// S [d, d]: pooled covariance of k - centroid(k).
void pool_covariance(const Matrix& k, const Matrix& centroids, const std::vector<std::int32_t>& nearest, Buffer<float>& out) {
  const std::size_t dim = k.front().size();
  std::vector<double> sum(dim * dim, 0.0);
  for (std::size_t t = 0; t < k.size(); ++t) {
    const auto& centroid = centroids[static_cast<std::size_t>(nearest[t])];
    for (std::size_t i = 0; i < dim; ++i) {
      for (std::size_t j = 0; j < dim; ++j) sum[i * dim + j] += (k[t][i] - centroid[i]) * (k[t][j] - centroid[j]);
    }
  }
  for (std::size_t i = 0; i < sum.size(); ++i) out[i] = static_cast<float>(sum[i] / static_cast<double>(k.size()));
}

void build_head(const Matrix& k, const Matrix& v, const MetricSpace& metric, int kv_head, std::int64_t first,
                const ClusterOptions& options, HeadClusters& out) {
  Matrix y;
  for (const auto& key : k) y.push_back(transform(metric, key));
  const Assignment found = cluster(y, out.count, kv_head, options);

  std::vector<std::int32_t> cursor(found.sizes.size());
  order_tokens(found.nearest, found.sizes, out.tokens.span(), out.begin.span(), cursor);
  for (std::int32_t& token : out.tokens) token += static_cast<std::int32_t>(first);

  const Matrix mean_k = means(k, found.nearest, found.sizes);
  const Matrix mean_v = means(v, found.nearest, found.sizes);
  const Matrix mean_y = means(y, found.nearest, found.sizes);
  std::vector<double> spread(found.sizes.size(), 0.0);
  for (std::size_t t = 0; t < y.size(); ++t) {
    const auto c = static_cast<std::size_t>(found.nearest[t]);
    spread[c] += squared_distance(y[t], mean_y[c]) / found.sizes[c];
  }
  for (int c = 0; c < out.count; ++c) {
    const auto at = static_cast<std::size_t>(c);
    out.spread[at] = static_cast<float>(spread[at]);
    store_centroid(out, c, std::vector<float>(mean_k[at].begin(), mean_k[at].end()));
    const std::vector<float> value(mean_v[at].begin(), mean_v[at].end());
    quantise_row(value, out.mean_v.data() + at * value.size(), &out.mean_v_scale[at]);
  }
  pool_covariance(k, mean_k, found.nearest, out.covariance);
  out.mean_spread = mean_spread(out);
}

}  // namespace

std::shared_ptr<const Segment> build_segment(const KvView& kv, std::int64_t first, std::int64_t last,
                                             std::span<const MetricSpace> metrics, const ClusterOptions& options) {
  assert(first >= 0 && first < last && last <= kv.tokens && metrics.size() == static_cast<std::size_t>(kv.kv_heads));
  auto segment = allocate_segment(kv, first, last, options);
  for (int head = 0; head < kv.kv_heads; ++head) {
    const Matrix k = load_rows(kv, kv.k, head, first, last);
    const Matrix v = load_rows(kv, kv.v, head, first, last);
    if (!is_finite(k) || !is_finite(v)) throw_non_finite(kv, first, last);
    const auto at = static_cast<std::size_t>(head);
    build_head(k, v, metrics[at], head, first, options, segment->heads[at]);
  }
  return segment;
}

}  // namespace tactic::reference
