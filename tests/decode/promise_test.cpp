// Promise mode: margins by probing, and that they keep their promise on later queries.
#include "decode/promise.h"

#include <gtest/gtest.h>

#include "support/layer.h"

namespace tactic::test {
namespace {

Options promise_options(float mass) {
  Options o;
  o.min_context = 256;
  o.cluster_size = 16;
  o.mass = mass;
  o.tail_clusters = 0;
  o.promise = true;
  return o;
}

// KV head 0: all keys of a cluster equal. KV head 1: every eighth key far from the others of its cluster, so that a cluster's
// mass is what its strays make of it. KV head 2: keys scatter about their centroid.
class Promise : public testing::Test {
 protected:
  static LayerSpec spec() {
    LayerSpec s{.kv = {.shape = {12, 3, 64, 64}, .tokens = 2000}};
    s.noise = 0;
    s.int8_centroids = false;
    return s;
  }
  void SetUp() override {
    for (std::int64_t t = 0; t < 2000; ++t) {
      if (t % 8 == 0) layer_.kv().set_k(t, 1, layer_.kv().normal(64, 1.8f));
      std::vector<float> noise = layer_.kv().normal(64, 0.7f);
      const std::vector<float> key = layer_.kv().k(t, 2);
      for (std::size_t i = 0; i < 64; ++i) noise[i] += key[i];
      layer_.kv().set_k(t, 2, noise);
    }
    layer_.rebuild();
  }
  std::vector<float> probe(int count, const Options& options) {
    std::vector<float> q;
    for (int i = 0; i < count; ++i) {
      const std::vector<float> one = layer_.draw_queries();
      q.insert(q.end(), one.begin(), one.end());
    }
    return probe_margins(*team_, *workspace_, spec().kv.shape, layer_.kv().params(), {q.data(), count}, layer_.kv().view(),
                         layer_.index(), options);
  }
  LayerCase layer_{spec()};
  std::unique_ptr<Team> team_ = make_thread_team(2);
  WorkspacePtr workspace_ = make_workspace();
};

TEST_F(Promise, EasyHeadsKeepTheirTargetAndHardOnesGetAMargin) {
  const std::vector<float> margins = probe(5, promise_options(0.9f));
  ASSERT_EQ(margins.size(), 3u);
  EXPECT_EQ(margins[0], 1.0f);
  EXPECT_LT(margins[1], 1.0f);
}

TEST_F(Promise, LaterQueriesReachTheMassNineteenTimesInTwenty) {
  const Options options = promise_options(0.9f);
  layer_.index().margin = probe(5, options);
  int reached = 0;
  int all = 0;
  for (int draw = 0; draw < 25; ++draw) {
    layer_.kv().q() = layer_.draw_queries();
    const Query query = layer_.kv().query();
    const auto weights = true_weights(query, layer_.kv().view());
    const StepResult r = cpu_step(*team_, *workspace_, query, layer_.kv().view(), &layer_.index(), options);
    for (int q = 0; q < 12; ++q) {
      reached += mass_reached(r, weights, spec().kv.shape, 2000, q) >= 0.9 - 1e-4 ? 1 : 0;
      ++all;
    }
  }
  EXPECT_GE(reached, 0.95 * all);
}

// Centroids that point away from their keys: no margin helps, the head runs dense.
TEST_F(Promise, AHeadThatNoMarginHelpsRunsDense) {
  auto segment = std::make_shared<Segment>(*layer_.index().segments[0]);
  for (std::uint16_t& bits : segment->heads[2].centroid16) bits ^= 0x8000;
  segment->heads[2].covariance.fill(0);
  layer_.index().segments = {segment};
  layer_.index().tables.clear();
  for (int h = 0; h < 3; ++h) layer_.index().tables.push_back(make_table(layer_.index().segments, h));
  Options options = promise_options(0.9f);
  options.verify = options.tail_factor = false;
  const std::vector<float> margins = probe(5, options);
  EXPECT_EQ(margins[0], 1.0f);
  EXPECT_LT(margins[2], 0.0f);
}

TEST_F(Promise, WithoutProbesAllMarginsAreOne) { EXPECT_EQ(probe(0, promise_options(0.9f)), std::vector<float>(3, 1.0f)); }

TEST_F(Promise, IsTheSameForEveryTeam) {
  layer_.kv().random().seed(9);
  team_ = make_serial_team();
  const std::vector<float> q = layer_.draw_queries();
  const Options options = promise_options(0.9f);
  const auto with = [&](Team& team) {
    return probe_margins(team, *workspace_, spec().kv.shape, layer_.kv().params(), {q.data(), 1}, layer_.kv().view(),
                         layer_.index(), options);
  };
  const auto three = make_thread_team(3);
  EXPECT_EQ(with(*team_), with(*three));
}

}  // namespace
}  // namespace tactic::test
