// A share of the clusters is placed on the tokens farthest from their centroid before the last assignment.
#include <algorithm>

#include "cluster/segment.h"
#include "cluster/support.h"

namespace tactic::test {
namespace {

KvSpec spec(int kv_heads, std::int64_t tokens, DType type) {
  KvSpec s;
  s.shape = {kv_heads, kv_heads, 64, 64};
  s.k_type = s.v_type = type;
  s.tokens = tokens;
  return s;
}

ClusterOptions clustering(int size, int iterations, float outlier_share, std::uint64_t seed = 11) {
  ClusterOptions o;
  o.cluster_size = size;
  o.iterations = iterations;
  o.outlier_share = outlier_share;
  o.seed = seed;
  return o;
}

std::shared_ptr<const Segment> build(const KvCase& kv, std::int64_t last, const ClusterOptions& options) {
  const auto team = make_thread_team(2);
  return build_segment(*team, kv.view(), 0, last, random_metrics(Metric::l2, 64, kv.spec().shape.kv_heads), options);
}

bool same_tokens(const HeadClusters& a, const HeadClusters& b) {
  return std::equal(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end());
}

// One key and small noise, but for two kinds of tokens far away in directions of their own.
class Outliers : public testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 640;
  const std::vector<std::int64_t> one_kind = {100, 333, 601};
  const std::vector<std::int64_t> other_kind = {57, 410};
  KvCase kv{spec(1, kTokens, DType::f32)};

  Outliers() {
    for (std::int64_t t = 0; t < kTokens; ++t) {
      std::vector<float> k = kv.k(t, 0);
      for (float& x : k) x = 1 + 0.05f * x;
      if (std::find(one_kind.begin(), one_kind.end(), t) != one_kind.end()) k[5] += 0.7f;
      if (std::find(other_kind.begin(), other_kind.end(), t) != other_kind.end()) k[40] -= 0.7f;
      kv.set_k(t, 0, k);
    }
  }

  // Whether the clusters that hold any of the tokens hold nothing else.
  static bool are_by_themselves(const HeadClusters& head, const std::vector<std::int64_t>& tokens) {
    for (int c = 0; c < head.count; ++c) {
      const auto members =
          head.tokens.span().subspan(static_cast<std::size_t>(head.begin[c]), static_cast<std::size_t>(head.size(c)));
      const auto of_kind = std::count_if(members.begin(), members.end(), [&](std::int32_t token) {
        return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
      });
      if (of_kind != 0 && of_kind != head.size(c)) return false;
    }
    return true;
  }
};

TEST_F(Outliers, EndAmongTheirLikeWithAShareOfTheClustersAndAmongUnlikeOnesWithout) {
  for (const std::uint64_t seed : {1, 2, 3}) {
    EXPECT_FALSE(are_by_themselves(build(kv, kTokens, clustering(32, 3, 0, seed))->heads[0], one_kind)) << seed;
    const auto segment = build(kv, kTokens, clustering(32, 3, 0.25f, seed));
    expect_partition(*segment);
    EXPECT_EQ(segment->heads[0].count, 20);
    EXPECT_TRUE(are_by_themselves(segment->heads[0], one_kind)) << seed;
    EXPECT_TRUE(are_by_themselves(segment->heads[0], other_kind)) << seed;
  }
}

TEST_F(Outliers, ArePlacedAndDrawTheirLikeWhereNothingMovesAnyMore) {
  // three drawn clusters, at rest after some ten iterations, and three placed ones for five outliers
  const auto rested = build(kv, kTokens, clustering(107, 100, 0.5f));
  EXPECT_TRUE(are_by_themselves(rested->heads[0], one_kind));
  const auto further = build(kv, kTokens, clustering(107, 1000000000, 0.5f));  // would not return if it did not stop
  EXPECT_TRUE(same_tokens(rested->heads[0], further->heads[0]));
}

TEST(OutlierShare, FewTokensAndEqualKeysStillMakeAPartition) {
  KvCase kv(spec(2, 300, DType::f16));
  for (const int iterations : {0, 1, 2, 3}) {
    for (const float share : {0.1f, 0.3f, 0.5f}) {
      for (const int size : {1, 2, 30}) {
        for (const int clusters : {1, 2, 5, 10}) {
          const auto segment = build(kv, clusters * size, clustering(size, iterations, share));
          expect_partition(*segment);
          EXPECT_EQ(segment->heads[0].count, clusters);
        }
      }
    }
  }
  for (std::int64_t t = 0; t < 300; ++t) kv.set_k(t, 1, std::vector<float>(64, 0.3f));
  expect_partition(*build(kv, 300, clustering(16, 3, 0.5f)));
}

TEST(OutlierShare, IsRoundedDownToClustersAndNoneWhereNothingIsAssignedBefore) {
  EXPECT_EQ(drawn_count(20, clustering(32, 3, 0)), 20);
  EXPECT_EQ(drawn_count(1, clustering(32, 3, 0.5f)), 1);
  EXPECT_EQ(drawn_count(5, clustering(32, 3, 0.5f)), 3);
  EXPECT_EQ(drawn_count(19, clustering(32, 3, 0.1f)), 18);
  EXPECT_EQ(drawn_count(20, clustering(32, 3, 0.1f)), 18);
  EXPECT_EQ(drawn_count(20, clustering(32, 0, 0.1f)), 20);
}

TEST(OutlierShare, AHeadDoesNotSeeWhoseScratchItHas) {
  KvCase kv(spec(8, 31000, DType::f16));                     // 8.4 MB of scratch a KV head: the eighth gets the first one's
  const ClusterOptions options = clustering(8192, 1, 0.5f);  // two of four clusters
  const auto before = build(kv, 31000, options);
  for (std::int64_t t = 0; t < 31000; ++t) kv.set_k(t, 0, kv.k(t, 7));
  EXPECT_TRUE(same_tokens(before->heads[7], build(kv, 31000, options)->heads[7]));
}

}  // namespace
}  // namespace tactic::test
