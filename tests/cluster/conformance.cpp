// The CPU backend against the scalar reference: every instruction set, type, head dim, layout, metric and centroid type.
#include <string>

#include "cluster/support.h"

namespace tactic::test {
namespace {

struct Case {
  std::string name;
  KvSpec kv;
  Metric metric = Metric::query;
  ClusterOptions options;
  std::int64_t first = 0;
};

KvSpec spec(int kv_heads, int dim, int v_dim, DType k_type, DType v_type, std::int64_t tokens, Layout layout) {
  KvSpec s;
  s.shape = {kv_heads, kv_heads, dim, v_dim};
  s.k_type = k_type;
  s.v_type = v_type;
  s.tokens = tokens;
  s.layout = layout;
  return s;
}

ClusterOptions clustering(int size, int iterations, bool int8, float outlier_share = 0) {
  ClusterOptions o;
  o.cluster_size = size;
  o.iterations = iterations;
  o.int8_centroids = int8;
  o.seed = 5;
  o.outlier_share = outlier_share;
  return o;
}

std::vector<Case> cases() {
  using L = Layout;
  return {
      {"d64_f16_query", spec(3, 64, 64, DType::f16, DType::f16, 517, L::side_by_side), Metric::query, clustering(16, 3, true), 4},
      {"d64_f16_outliers", spec(3, 64, 64, DType::f16, DType::f16, 517, L::side_by_side), Metric::query,
       clustering(8, 3, true, 0.2f), 4},
      {"d128_bf16_outliers_after_one", spec(2, 128, 128, DType::bf16, DType::bf16, 400, L::blocks), Metric::l2,
       clustering(16, 1, true, 0.5f), 0},
      {"d64_f32_outliers_at_rest", spec(2, 64, 64, DType::f32, DType::f32, 260, L::side_by_side), Metric::l2,
       clustering(32, 60, true, 0.4f), 0},
      {"d80_bf16_l2", spec(2, 80, 64, DType::bf16, DType::f32, 333, L::head_major), Metric::l2, clustering(8, 4, false), 0},
      {"d96_f32_diagonal", spec(2, 96, 128, DType::f32, DType::bf16, 301, L::padded), Metric::diagonal, clustering(32, 3, true),
       1},
      {"d128_f16_blocks", spec(2, 128, 96, DType::f16, DType::f16, 401, L::blocks), Metric::query, clustering(5, 2, true), 37},
      {"d256_bf16_query", spec(1, 256, 80, DType::bf16, DType::bf16, 211, L::side_by_side), Metric::query,
       clustering(4, 3, false), 0},
      {"d64_v256_one_cluster", spec(1, 64, 256, DType::f32, DType::f32, 97, L::blocks), Metric::query, clustering(4096, 3, true),
       0},
      {"d64_clusters_of_one", spec(1, 64, 64, DType::f16, DType::f16, 41, L::side_by_side), Metric::l2, clustering(1, 3, true),
       3},
  };
}

class ClusterConformance : public ::testing::TestWithParam<Case> {};

void expect_close(const Buffer<float>& got, const Buffer<float>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
}

void expect_equal(const HeadClusters& got, const HeadClusters& want, double k_square, double y_square, std::int64_t n) {
  ASSERT_EQ(got.count, want.count);
  for (std::size_t i = 0; i < want.begin.size(); ++i) ASSERT_EQ(got.begin[i], want.begin[i]);
  for (std::size_t i = 0; i < want.tokens.size(); ++i) ASSERT_EQ(got.tokens[i], want.tokens[i]);
  // Means and sums of n products in f32, d of them in the transform: (n + d) u of the largest |k|^2 or |y|^2. One step of int8
  // or f16 where a mean lies at a border between two.
  const double u = 0x1p-24 * (static_cast<double>(n) + 256);
  expect_close(got.spread, want.spread, 4 * u * y_square);
  expect_close(got.covariance, want.covariance, 4 * u * k_square);
  EXPECT_NEAR(got.mean_spread, want.mean_spread, 4 * u * y_square);
  expect_close(got.centroid_scale, want.centroid_scale, u * std::sqrt(k_square) / 127);
  ASSERT_EQ(got.centroid8.size(), want.centroid8.size());
  for (std::size_t i = 0; i < got.centroid8.size(); ++i) ASSERT_NEAR(got.centroid8[i], want.centroid8[i], 1);
  ASSERT_EQ(got.centroid16.size(), want.centroid16.size());
  for (std::size_t i = 0; i < got.centroid16.size(); ++i) {
    const double value = half_to_float(want.centroid16[i]);
    ASSERT_NEAR(half_to_float(got.centroid16[i]), value, std::abs(value) * 0x1p-10 + 0x1p-24 + u * std::sqrt(k_square));
  }
  for (std::size_t i = 0; i < got.mean_v.size(); ++i) ASSERT_NEAR(got.mean_v[i], want.mean_v[i], 1);
  expect_close(got.mean_v_scale, want.mean_v_scale, 1e-5);
}

TEST_P(ClusterConformance, MatchesTheReferenceOnEveryInstructionSet) {
  const Case& c = GetParam();
  KvCase kv(c.kv);
  const auto metrics = random_metrics(c.metric, c.kv.shape.head_dim, c.kv.shape.kv_heads);
  const std::int64_t last = c.kv.tokens - 5;
  const auto want = reference::build_segment(kv.view(), c.first, last, metrics, c.options);
  expect_partition(*want);
  for (const Isa isa : supported_isas()) {
    SCOPED_TRACE(name_of(isa));
    const IsaScope scope(isa);
    const auto team = make_thread_team(2);
    const auto got = build_segment(*team, kv.view(), c.first, last, metrics, c.options);
    ASSERT_EQ(got->heads.size(), want->heads.size());
    EXPECT_EQ(got->first, c.first);
    EXPECT_EQ(got->last, last);
    for (int h = 0; h < c.kv.shape.kv_heads; ++h) {
      double k_square = 0;
      double y_square = 0;
      for (std::int64_t t = c.first; t < last; ++t) {
        const auto k = kv.k(t, h);
        double square = 0;
        for (const double y : to_space(metrics[static_cast<std::size_t>(h)], k)) square += y * y;
        y_square = std::max(y_square, square);
        k_square = std::max(k_square, norm(k) * norm(k));
      }
      SCOPED_TRACE(h);
      expect_equal(got->heads[static_cast<std::size_t>(h)], want->heads[static_cast<std::size_t>(h)], k_square, y_square,
                   last - c.first);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ClusterConformance, ::testing::ValuesIn(cases()),
                         [](const auto& named) { return named.param.name; });

TEST(ClusterTeams, SegmentsDoNotDependOnTheNumberOfWorkers) {
  KvCase kv(spec(3, 64, 64, DType::f16, DType::f16, 3000, Layout::side_by_side));
  const auto metrics = random_metrics(Metric::query, 64, 3);
  const auto build = [&](int workers) {
    const auto team = make_thread_team(workers);
    return build_segment(*team, kv.view(), 4, 2990, metrics, clustering(16, 3, true, 0.1f));
  };
  const auto one = build(1);
  for (const int workers : {2, 3, 7}) {
    const auto many = build(workers);
    for (std::size_t h = 0; h < 3; ++h) {
      const HeadClusters& a = one->heads[h];
      const HeadClusters& b = many->heads[h];
      const auto same = [](const auto& x, const auto& y) { return std::equal(x.begin(), x.end(), y.begin(), y.end()); };
      EXPECT_TRUE(same(a.tokens, b.tokens) && same(a.begin, b.begin) && same(a.centroid8, b.centroid8) &&
                  same(a.centroid_scale, b.centroid_scale) && same(a.spread, b.spread) && same(a.mean_v, b.mean_v) &&
                  same(a.mean_v_scale, b.mean_v_scale) && same(a.covariance, b.covariance) && a.mean_spread == b.mean_spread)
          << workers << " workers, KV head " << h;
    }
  }
}

TEST(ClusterTeams, AnotherSeedGivesOtherClusters) {
  KvCase kv(spec(1, 64, 64, DType::f16, DType::f16, 400, Layout::side_by_side));
  const auto metrics = random_metrics(Metric::query, 64, 1);
  const auto team = make_serial_team();
  ClusterOptions options = clustering(16, 3, true);
  const auto a = build_segment(*team, kv.view(), 0, 400, metrics, options);
  options.seed = 6;
  const auto b = build_segment(*team, kv.view(), 0, 400, metrics, options);
  EXPECT_FALSE(std::equal(a->heads[0].tokens.begin(), a->heads[0].tokens.end(), b->heads[0].tokens.begin()));
}

}  // namespace
}  // namespace tactic::test
