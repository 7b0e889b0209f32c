// Clustering on the device: what a segment promises, against double precision sums over the device's own partition and against
// the CPU's objective from the same random start.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "gpu/cluster_case.h"

namespace tactic::test {
namespace {

class GpuCluster : public testing::TestWithParam<std::tuple<ClusterSpec, bool>> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no usable GPU";
    cuda::force_common_clustering(std::get<1>(GetParam()));
  }
  void TearDown() override {
    if (has_gpu()) cuda::force_common_clustering(false);
  }
};

// Means over the device's own partition, in double: of k, of v, of y; scatter of y.
struct HeadMeans {
  std::vector<std::vector<double>> k, v;
  std::vector<double> scatter;  // sum |y - mean y|^2
  double total = 0;             // sum |y - mean of all y|^2
};
HeadMeans means_of(ClusterCase& c, int head, const HeadClusters& clusters) {
  const auto dim = static_cast<std::size_t>(c.spec().shape.head_dim), v_dim = static_cast<std::size_t>(c.spec().shape.v_head_dim);
  HeadMeans out;
  std::vector<std::vector<double>> y(static_cast<std::size_t>(c.spec().tokens));
  std::vector<double> mean(dim, 0.0);
  for (std::size_t t = 0; t < y.size(); ++t) {
    y[t] = to_space(c.metrics()[static_cast<std::size_t>(head)], c.kv().k(kFirst + static_cast<std::int64_t>(t), head));
    for (std::size_t i = 0; i < dim; ++i) mean[i] += y[t][i] / static_cast<double>(y.size());
  }
  for (const auto& row : y) {
    for (std::size_t i = 0; i < dim; ++i) out.total += (row[i] - mean[i]) * (row[i] - mean[i]);
  }
  for (int n = 0; n < clusters.count; ++n) {
    std::vector<double> k(dim, 0.0), v(v_dim, 0.0), my(dim, 0.0);
    const double size = clusters.size(n);
    const auto tokens =
        clusters.tokens.span().subspan(static_cast<std::size_t>(clusters.begin[n]), static_cast<std::size_t>(size));
    for (const std::int32_t token : tokens) {
      const std::vector<float> key = c.kv().k(token, head), value = c.kv().v(token, head);
      for (std::size_t i = 0; i < dim; ++i) k[i] += key[i] / size, my[i] += y[static_cast<std::size_t>(token - kFirst)][i] / size;
      for (std::size_t i = 0; i < v_dim; ++i) v[i] += value[i] / size;
    }
    double scatter = 0;
    for (const std::int32_t token : tokens) {
      for (std::size_t i = 0; i < dim; ++i) scatter += std::pow(y[static_cast<std::size_t>(token - kFirst)][i] - my[i], 2);
    }
    out.k.push_back(k), out.v.push_back(v), out.scatter.push_back(scatter);
  }
  return out;
}

TEST_P(GpuCluster, KeepsItsPromises) {
  ClusterCase c(std::get<0>(GetParam()));
  c.run();
  ASSERT_EQ(c.batch().statuses(), (std::vector<std::uint32_t>{0, 0}));
  const auto range = fetch(c.index().range, 4);
  EXPECT_EQ(range, (std::vector<std::int32_t>{0, 0, kFirst, kFirst + c.spec().tokens}));
  EXPECT_EQ(fetch(c.index().parts, 2), (std::vector<std::int32_t>{0, 1}));
  for (int head = 0; head < c.spec().shape.kv_heads; ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    const HeadClusters clusters = c.clusters(head);
    ASSERT_EQ(clusters.count, c.count());
    expect_partition(c, clusters);
    if (HasFatalFailure()) return;
    const HeadMeans means = means_of(c, head, clusters);
    for (int n = 0; n < clusters.count; ++n) {
      SCOPED_TRACE("cluster " + std::to_string(n));
      const auto at = static_cast<std::size_t>(n);
      const std::vector<float> got = centroid(clusters, n, c.spec().shape.head_dim);
      double largest = 0;
      for (const double x : means.k[at]) largest = std::max(largest, std::abs(x));
      // int8: half a step of largest / 127; bf16: half a unit in the last of 8 places; f32 sums on top
      const double tolerance = largest * (c.spec().int8 ? 1 / 254.0 : 1 / 256.0) * 1.01;
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], means.k[at][i], tolerance);
      largest = 0;
      for (const double x : means.v[at]) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < means.v[at].size(); ++i) {
        EXPECT_NEAR(clusters.mean_v[at * means.v[at].size() + i] * static_cast<double>(clusters.mean_v_scale[at]), means.v[at][i],
                    largest / 254 * 1.01);
      }
      // y is held in f16 relative to a mean of keys: 2^-11 an element, independent, of both factors of a square
      const double expected = means.scatter[at] / clusters.size(n);
      EXPECT_NEAR(clusters.spread[at], expected, 5e-3 * expected + 1e-5 * means.total / c.spec().tokens);
    }
  }
}

TEST_P(GpuCluster, IsAsGoodAsTheCpuFromTheSameStart) {
  ClusterCase c(std::get<0>(GetParam()));
  if (c.spec().type == DeviceType::fp8_e4m3) GTEST_SKIP() << "the CPU has no fp8";
  c.run();
  auto team = make_serial_team();
  const auto segment = build_segment(*team, c.kv().view(), kFirst, kFirst + c.spec().tokens, c.metrics(), c.options());
  double ours = 0, theirs = 0, total = 0;
  for (int head = 0; head < c.spec().shape.kv_heads; ++head) {
    const HeadMeans means = means_of(c, head, c.clusters(head));
    ours += std::accumulate(means.scatter.begin(), means.scatter.end(), 0.0);
    theirs += static_cast<double>(segment->heads[static_cast<std::size_t>(head)].mean_spread) * c.spec().tokens;
    total += means.total;
  }
  EXPECT_NEAR(ours, theirs, 5e-3 * theirs + 1e-6 * total);
}

TEST_P(GpuCluster, IsDeterministic) {
  ClusterCase c(std::get<0>(GetParam()));
  c.run();
  const auto first = c.bytes();
  c.run();
  EXPECT_EQ(c.bytes(), first);
}

TEST_P(GpuCluster, ShapeIsThePooledCovariance) {
  ClusterCase c(std::get<0>(GetParam()));
  if (c.spec().tokens > 1100) GTEST_SKIP() << "too slow in double";
  c.run();
  const auto dim = static_cast<std::size_t>(c.spec().shape.head_dim);
  for (int head = 0; head < c.spec().shape.kv_heads; ++head) {
    const HeadClusters clusters = c.clusters(head);
    const HeadMeans means = means_of(c, head, clusters);
    const double spread = std::accumulate(means.scatter.begin(), means.scatter.end(), 0.0);
    if (spread <= 1e-4 * means.total) continue;  // all on their centroids: nothing to compare
    std::vector<double> sum(dim * dim, 0.0);
    for (int n = 0; n < clusters.count; ++n) {
      for (int i = clusters.begin[n]; i < clusters.begin[n + 1]; ++i) {
        const std::vector<float> key = c.kv().k(clusters.tokens[static_cast<std::size_t>(i)], head);
        for (std::size_t a = 0; a < dim; ++a) {
          for (std::size_t b = 0; b < dim; ++b) {
            sum[a * dim + b] +=
                (key[a] - means.k[static_cast<std::size_t>(n)][a]) * (key[b] - means.k[static_cast<std::size_t>(n)][b]);
          }
        }
      }
    }
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      error += std::pow(sum[i] / spread - clusters.covariance[i], 2);
      norm += std::pow(sum[i] / spread, 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 6e-3) << "head " << head;  // bf16 rounds by up to 2^-9, the spread errs by 5e-3 at most
  }
}

class GpuOutliers : public OnDevice {};

// Clusters that hold both outliers and other tokens.
int mixed_clusters(float outlier_share) {
  constexpr int kSpacing = 200;
  ClusterCase c(
      {"", 640, {2, 1, 64, 64}, 64, 3, DeviceType::f32, Metric::l2, Layout::side_by_side, true, 0, outlier_share, kSpacing});
  c.run();
  const HeadClusters clusters = c.clusters(0);
  expect_partition(c, clusters);
  int mixed = 0;
  for (int n = 0; n < clusters.count; ++n) {
    const auto tokens =
        clusters.tokens.span().subspan(static_cast<std::size_t>(clusters.begin[n]), static_cast<std::size_t>(clusters.size(n)));
    const auto outliers = std::count_if(tokens.begin(), tokens.end(), [](std::int32_t token) { return token % kSpacing == 0; });
    mixed += outliers != 0 && outliers != clusters.size(n) ? 1 : 0;
  }
  return mixed;
}

TEST_F(GpuOutliers, EndAmongTheirLikeWithAShareOfTheClustersAndAmongUnlikeOnesWithout) {
  EXPECT_EQ(mixed_clusters(0.5f), 0);
  EXPECT_GT(mixed_clusters(0), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GpuCluster,
    testing::Combine(
        testing::Values(
            ClusterSpec{"quick", 300}, ClusterSpec{"d80", 1000, {2, 1, 80, 80}},
            ClusterSpec{"d96_l2", 1000, {2, 1, 96, 96}, 16, 3, DeviceType::bf16, Metric::l2},
            ClusterSpec{"d128_blocks", 1100, {8, 2, 128, 128}, 32, 3, DeviceType::bf16, Metric::query, Layout::blocks},
            ClusterSpec{
                "d256_bf16_centroids", 700, {2, 1, 256, 256}, 32, 3, DeviceType::bf16, Metric::query, Layout::padded, false},
            ClusterSpec{"f16_head_major", 5000, {2, 2, 64, 64}, 16, 3, DeviceType::f16, Metric::diagonal, Layout::head_major},
            ClusterSpec{"f32_ten_iterations", 2100, {2, 2, 128, 64}, 16, 10, DeviceType::f32},
            ClusterSpec{"fp8_blocks", 1000, {2, 2, 64, 64}, 16, 3, DeviceType::fp8_e4m3, Metric::query, Layout::blocks},
            ClusterSpec{"one_token", 1}, ClusterSpec{"five_tokens", 5}, ClusterSpec{"odd", 257, {2, 1, 64, 80}, 2},
            ClusterSpec{"one_cluster", 3000, {2, 1, 64, 64}, 4096},
            ClusterSpec{
                "repeated_keys", 900, {2, 1, 64, 64}, 8, 3, DeviceType::bf16, Metric::query, Layout::side_by_side, true, 37},
            ClusterSpec{"outliers", 5000, {2, 2, 128, 128}, 16, 3, DeviceType::bf16, Metric::query, Layout::blocks, true, 0, .1f},
            ClusterSpec{"half_outliers", 1100, {4, 2, 64, 64}, 4, 2, DeviceType::f16, Metric::l2, Layout::padded, true, 0, .5f},
            ClusterSpec{"outliers_of_equal_keys",
                        2100,
                        {2, 1, 64, 64},
                        4,
                        3,
                        DeviceType::bf16,
                        Metric::query,
                        Layout::side_by_side,
                        true,
                        37,
                        .3f},
            ClusterSpec{
                "outliers_of_five", 5, {2, 1, 64, 64}, 1, 1, DeviceType::bf16, Metric::l2, Layout::side_by_side, true, 0, .5f}),
        testing::Bool()),
    [](const auto& test) { return std::string(std::get<0>(test.param).name) + (std::get<1>(test.param) ? "_common" : ""); });

}  // namespace
}  // namespace tactic::test
