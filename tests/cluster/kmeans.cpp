// What k-means and a segment promise, checked against facts that need no second implementation.
#include <limits>
#include <numeric>
#include <set>
#include <string>

#include "cluster/segment.h"
#include "cluster/support.h"
#include "core/error.h"

namespace tactic::test {
namespace {

KvSpec spec(int kv_heads, std::int64_t tokens, DType type = DType::f16) {
  KvSpec s;
  s.shape = {kv_heads, kv_heads, 64, 64};
  s.k_type = s.v_type = type;
  s.tokens = tokens;
  return s;
}

ClusterOptions clustering(int size, int iterations, bool int8 = true) {
  ClusterOptions o;
  o.cluster_size = size;
  o.iterations = iterations;
  o.int8_centroids = int8;
  o.seed = 11;
  return o;
}

std::shared_ptr<const Segment> build(const KvCase& kv, std::int64_t first, std::int64_t last, const ClusterOptions& options,
                                     Metric metric = Metric::query) {
  const auto team = make_thread_team(2);
  const Shape& shape = kv.spec().shape;
  return build_segment(*team, kv.view(), first, last, random_metrics(metric, shape.head_dim, shape.kv_heads), options);
}

TEST(KMeans, ObjectiveNeverRisesWithIterations) {
  KvCase kv(spec(2, 1500));
  for (const Metric metric : {Metric::l2, Metric::query}) {
    double before[2] = {1e30, 1e30};
    for (int iterations = 0; iterations <= 10; ++iterations) {
      const auto segment = build(kv, 0, 1500, clustering(16, iterations), metric);
      for (int h = 0; h < 2; ++h) {
        const double now = segment->heads[static_cast<std::size_t>(h)].mean_spread;
        EXPECT_LE(now, before[h] * (1 + 1e-5)) << iterations;
        before[h] = now;
      }
    }
  }
}

TEST(KMeans, StopsWhereNothingMoves) {
  KvCase kv(spec(1, 200));
  const auto done = build(kv, 0, 200, clustering(40, 100));
  const auto further = build(kv, 0, 200, clustering(40, 1000000000));  // would not return if it did not stop
  EXPECT_EQ(done->heads[0].mean_spread, further->heads[0].mean_spread);
}

TEST(KMeans, TraceOfMetricTimesCovarianceIsTheMeanSpread) {
  KvCase kv(spec(2, 700));
  for (const Isa isa : supported_isas()) {
    const IsaScope scope(isa);
    for (const Metric kind : {Metric::query, Metric::diagonal, Metric::l2}) {
      const auto metrics = random_metrics(kind, 64, 2);
      const auto segment = build(kv, 3, 690, clustering(16, 3), kind);
      for (std::size_t h = 0; h < 2; ++h) {
        const HeadClusters& head = segment->heads[h];
        double trace = 0;  // tr(L L^T S) = sum over columns l of L of l^T S l
        for (std::size_t j = 0; j < 64; ++j) {
          std::vector<float> unit(64, 0.0f);
          unit[j] = 1;
          const auto row = to_space(metrics[h], unit);  // row j of L
          for (std::size_t i = 0; i < 64; ++i) {
            std::fill(unit.begin(), unit.end(), 0.0f);
            unit[i] = 1;
            const auto other = to_space(metrics[h], unit);
            trace +=
                std::inner_product(row.begin(), row.end(), other.begin(), 0.0) * static_cast<double>(head.covariance[i * 64 + j]);
          }
        }
        EXPECT_NEAR(trace, head.mean_spread, 1e-4 * head.mean_spread);
      }
    }
  }
}

TEST(KMeans, ALargePartThatAllKeysShareDoesNotBlurTheDistance) {
  KvCase kv(spec(1, 600, DType::f32));
  const auto near = build(kv, 0, 600, clustering(16, 3), Metric::l2);
  for (std::int64_t t = 0; t < 600; ++t) {
    auto k = kv.k(t, 0);
    for (float& x : k) x = std::round(x * 256) / 256;  // so that adding 4096 and taking it away is exact
    kv.set_k(t, 0, k);
  }
  const auto plain = build(kv, 0, 600, clustering(16, 3), Metric::l2);
  for (std::int64_t t = 0; t < 600; ++t) {
    auto k = kv.k(t, 0);
    for (float& x : k) x += 4096;
    kv.set_k(t, 0, k);
  }
  const auto shifted = build(kv, 0, 600, clustering(16, 3), Metric::l2);
  EXPECT_TRUE(std::equal(plain->heads[0].tokens.begin(), plain->heads[0].tokens.end(), shifted->heads[0].tokens.begin()));
  EXPECT_NEAR(shifted->heads[0].mean_spread, near->heads[0].mean_spread, 0.01 * near->heads[0].mean_spread);
}

// ---- odd inputs ------------------------------------------------------------------------------------------------------

TEST(KMeans, EqualKeysStillFillEveryCluster) {
  KvCase kv(spec(2, 300));
  for (std::int64_t t = 0; t < 300; ++t) {
    for (int h = 0; h < 2; ++h) kv.set_k(t, h, std::vector<float>(64, 0.3f));
  }
  const auto segment = build(kv, 0, 300, clustering(16, 3));
  expect_partition(*segment);
  EXPECT_EQ(segment->heads[0].count, 19);
  EXPECT_NEAR(segment->heads[0].mean_spread, 0, 1e-5);
}

TEST(KMeans, FewerDistinctKeysThanClustersLeaveNoSpread) {
  KvCase kv(spec(1, 320));
  for (std::int64_t t = 0; t < 320; ++t) kv.set_k(t, 0, kv.k(t % 5, 0));
  const auto segment = build(kv, 0, 320, clustering(16, 3));  // 20 clusters for 5 keys
  expect_partition(*segment);
  EXPECT_NEAR(segment->heads[0].mean_spread, 0, 1e-3);
}

TEST(KMeans, OneTokenAndShortRangesMakeOneCluster) {
  KvCase kv(spec(2, 60));
  for (const std::int64_t last : {31, 40, 45}) {  // 1, 10, 15 tokens of cluster size 32
    const auto segment = build(kv, 30, last, clustering(32, 3, false));
    expect_partition(*segment);
    EXPECT_EQ(segment->heads[1].count, 1);
  }
  const auto one = build(kv, 30, 31, clustering(32, 3, false));
  const auto k = kv.k(30, 1);
  const auto c = centroid(one->heads[1], 0, 64);
  for (std::size_t i = 0; i < k.size(); ++i) EXPECT_EQ(c[i], k[i]);
  EXPECT_EQ(one->heads[1].spread[0], 0);
  EXPECT_EQ(one->heads[1].mean_spread, 0);
}

TEST(KMeans, NumberOfClustersIsRounded) {
  EXPECT_EQ(cluster_count(1, 32), 1);
  EXPECT_EQ(cluster_count(15, 32), 1);
  EXPECT_EQ(cluster_count(47, 32), 1);
  EXPECT_EQ(cluster_count(48, 32), 2);
  EXPECT_EQ(cluster_count(100, 1), 100);
}

TEST(KMeans, TokensOutsideTheRangeAreNotRead) {
  KvCase kv(spec(1, 200));
  const auto want = build(kv, 10, 150, clustering(16, 3));
  const std::vector<float> poison(64, std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t t = 0; t < 200; ++t) {
    if (t < 10 || t >= 150) {
      kv.set_k(t, 0, poison);
      kv.set_v(t, 0, poison);
    }
  }
  const auto got = build(kv, 10, 150, clustering(16, 3));
  EXPECT_TRUE(std::equal(want->heads[0].tokens.begin(), want->heads[0].tokens.end(), got->heads[0].tokens.begin()));
}

TEST(KMeans, NonFiniteKeysAndValuesAreNamed) {
  for (const bool in_key : {true, false}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      KvCase kv(spec(3, 200));
      auto values = in_key ? kv.k(123, 2) : kv.v(123, 2);
      values[40] = bad;
      in_key ? kv.set_k(123, 2, values) : kv.set_v(123, 2, values);
      try {
        build(kv, 4, 190, clustering(16, 3));
        FAIL() << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(error.status(), Status::non_finite);
        EXPECT_EQ(std::string(error.what()), std::string(in_key ? "K" : "V") + " of token 123, KV head 2 holds NaN or infinity");
      }
      EXPECT_NO_THROW(build(kv, 4, 123, clustering(16, 3)));
    }
  }
}

// ---- shared parts ----------------------------------------------------------------------------------------------------

TEST(KMeans, StartTokensAreDistinctAndTheSameOnEveryPlatform) {
  std::vector<std::int32_t> permutation(1000);
  draw_tokens(42, 3, 500, permutation);
  EXPECT_EQ(std::set<std::int32_t>(permutation.begin(), permutation.end()).size(), 1000u);
  const std::vector<std::int32_t> first(permutation.begin(), permutation.begin() + 4);
  EXPECT_EQ(first, (std::vector<std::int32_t>{199, 480, 67, 617}));
  std::vector<std::int32_t> other(1000);
  draw_tokens(42, 4, 500, other);
  EXPECT_NE(other, permutation);
}

TEST(KMeans, StartTokensAreDrawnEvenly) {
  constexpr int kTokens = 50, kDraws = 10, kRounds = 4000;
  std::vector<int> counts(kTokens, 0);
  std::vector<std::int32_t> permutation(kTokens);
  for (std::uint64_t seed = 0; seed < kRounds; ++seed) {
    draw_tokens(seed, 0, kDraws, permutation);
    for (int i = 0; i < kDraws; ++i) ++counts[static_cast<std::size_t>(permutation[static_cast<std::size_t>(i)])];
  }
  const double p = static_cast<double>(kDraws) / kTokens;
  for (const int count : counts) EXPECT_NEAR(count, kRounds * p, 5 * std::sqrt(kRounds * p * (1 - p)));  // five sigma
}

TEST(KMeans, EmptyClustersTakeTheFarthestTokensOfLargerOnes) {
  //                             clusters 1 and 4 are empty; token 5, the farthest, is alone in cluster 3
  std::vector<std::int32_t> nearest = {0, 0, 2, 2, 2, 3};
  const std::vector<float> distance = {1, 4, 2, 4, 3, 9};
  std::vector<std::int32_t> sizes(5), scratch(6);
  count_sizes(nearest, sizes);
  EXPECT_EQ(repair_empty(nearest, sizes, distance, scratch), 2);
  EXPECT_EQ(nearest, (std::vector<std::int32_t>{0, 1, 2, 4, 2, 3}));  // of tokens 1 and 3, equally far, the lower goes first
  EXPECT_EQ(sizes, (std::vector<std::int32_t>{1, 1, 2, 1, 1}));
  EXPECT_EQ(repair_empty(nearest, sizes, distance, scratch), 0);
}

TEST(Segment, CentroidsAreMeansToHalfAStep) {
  KvCase kv(spec(1, 500));
  for (const bool int8 : {true, false}) {
    const auto segment = build(kv, 0, 500, clustering(16, 3, int8));
    const HeadClusters& head = segment->heads[0];
    EXPECT_EQ(head.centroid8.empty(), !int8);
    EXPECT_EQ(head.centroid16.empty(), int8);
    for (int c = 0; c < head.count; ++c) {
      std::vector<double> k(64, 0.0), v(64, 0.0);
      for (int i = head.begin[c]; i < head.begin[c + 1]; ++i) {
        const auto token = head.tokens[static_cast<std::size_t>(i)];
        for (std::size_t j = 0; j < 64; ++j) {
          k[j] += static_cast<double>(kv.k(token, 0)[j]) / head.size(c);
          v[j] += static_cast<double>(kv.v(token, 0)[j]) / head.size(c);
        }
      }
      const auto got = centroid(head, c, 64);
      for (std::size_t j = 0; j < 64; ++j) {
        const double step = int8 ? static_cast<double>(head.centroid_scale[c]) / 2 : std::abs(k[j]) * 0x1p-11 + 0x1p-25;
        EXPECT_NEAR(got[j], k[j], step * (1 + 1e-4) + 1e-6);
        const double v_scale = head.mean_v_scale[c];
        EXPECT_NEAR(head.mean_v[static_cast<std::size_t>(c) * 64 + j] * v_scale, v[j], v_scale / 2 * (1 + 1e-4) + 1e-6);
      }
    }
  }
}

TEST(Segment, BytesAreThoseOfItsArrays) {
  KvCase kv(spec(2, 512));
  const std::size_t c = 32, d = 64, n = 512;
  const std::size_t shared = n * 4 + (c + 1) * 4 + c * 4 + c * d + c * 4 + d * d * 4;
  EXPECT_EQ(build(kv, 0, 512, clustering(16, 1, true))->bytes(), 2 * (shared + c * d + c * 4));
  EXPECT_EQ(build(kv, 0, 512, clustering(16, 1, false))->bytes(), 2 * (shared + 2 * c * d));
}

TEST(Segment, ZeroRowsQuantiseToZero) {
  const std::vector<float> zeros(64, 0.0f), tiny(64, 1e-42f);
  for (const auto& row : {zeros, tiny}) {
    std::vector<std::int8_t> out(64, 1);
    float scale = 1;
    quantise_row(row, out.data(), &scale);
    EXPECT_EQ(scale, 0);
    EXPECT_EQ(out, std::vector<std::int8_t>(64, 0));
  }
}

}  // namespace
}  // namespace tactic::test
