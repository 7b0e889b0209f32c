// What a sparse step owes its caller: the mass, the always-attended tokens, the same answer however tokens lie.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/layer.h"

namespace tactic::test {
namespace {

Options options_of(float mass) {
  Options o;
  o.min_context = 256;
  o.cluster_size = 16;
  o.mass = mass;
  o.goal = Goal::mass;
  o.tail_clusters = 0;
  return o;
}

class Choice : public testing::Test {
 protected:
  StepResult step(LayerCase& layer, const Options& options) {
    return cpu_step(*team_, *workspace_, layer.kv().query(), layer.kv().view(), &layer.index(), options);
  }
  std::unique_ptr<Team> team_ = make_thread_team(2);
  WorkspacePtr workspace_ = make_workspace();
};

// All keys of a cluster equal and f16 centroids: every estimate is the true mass to f32 rounding.
LayerSpec exact_spec() {
  LayerSpec spec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 2000}};
  spec.noise = 0;
  spec.int8_centroids = false;
  return spec;
}

TEST_F(Choice, ReachesTheMassWhereEstimatesAreExact) {
  LayerCase layer(exact_spec());
  const Shape& shape = layer.spec().kv.shape;
  for (int draw = 0; draw < 5; ++draw) {
    layer.kv().q() = layer.draw_queries();
    const auto weights = true_weights(layer.kv().query(), layer.kv().view());
    for (const float mass : {0.3f, 0.5f, 0.75f, 0.9f, 0.99f}) {
      for (const bool joint : {true, false}) {
        for (const bool verify : {true, false}) {
          Options options = options_of(mass);
          options.joint = joint;
          options.verify = options.tail_factor = verify;
          const StepResult r = step(layer, options);
          ASSERT_EQ(r.status, Status::ok);
          for (int q = 0; q < shape.q_heads; ++q) {
            const double reached = mass_reached(r, weights, shape, layer.spec().kv.tokens, q);
            EXPECT_GE(reached, mass - 1e-4) << "P " << mass << " joint " << joint << " verify " << verify << " head " << q;
            EXPECT_NEAR(r.estimated[static_cast<std::size_t>(q)], reached, 1e-3);
          }
        }
      }
    }
  }
}

TEST_F(Choice, LeavesOutWhatTheMassDoesNotNeed) {
  LayerCase layer(exact_spec());
  const StepResult low = step(layer, options_of(0.3f));
  const StepResult high = step(layer, options_of(0.9f));
  for (std::size_t h = 0; h < 2; ++h) {
    EXPECT_LT(low.attended[h], high.attended[h]);
    EXPECT_LT(high.attended[h], layer.spec().kv.tokens * 9 / 10);
  }
}

// A head alone may not leave out its heaviest: with G = 1 the chosen set is a prefix of the clusters in order of density, at most
// one density bin longer than the shortest prefix that reaches P.
TEST_F(Choice, OneHeadTakesTheDensestClusters) {
  LayerSpec spec = exact_spec();
  spec.kv.shape = {2, 2, 64, 64};
  LayerCase layer(spec);
  Options options = options_of(0.9f);
  options.verify = options.tail_factor = false;
  const StepResult r = step(layer, options);
  const auto weights = true_weights(layer.kv().query(), layer.kv().view());
  const std::int64_t n = spec.kv.tokens;
  for (int h = 0; h < 2; ++h) {
    double lightest_in = 1;
    double heaviest_out = 0;
    for (std::int64_t t = spec.sinks; t < n - spec.recent; ++t) {
      const double w = weights[static_cast<std::size_t>(h * n + t)];
      if (r.has(h, t)) {
        lightest_in = std::min(lightest_in, w);
      } else {
        heaviest_out = std::max(heaviest_out, w);
      }
    }
    EXPECT_GE(lightest_in, heaviest_out * (1 - 1e-3));
  }
}

TEST_F(Choice, AlwaysAttendsFirstAndRecentTokens) {
  for (const bool paper : {false, true}) {
    LayerSpec spec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 1500}, .sinks = 7, .recent = 93};
    spec.int8_centroids = !paper;
    LayerCase layer(spec);
    Options options = paper ? paper_options() : options_of(0.05f);
    options.mass = 0.05f;
    options.min_context = 256;
    const StepResult r = step(layer, options);
    for (int h = 0; h < 2; ++h) {
      for (std::int64_t t = 0; t < 7; ++t) EXPECT_TRUE(r.has(h, t)) << t;
      for (std::int64_t t = 1500 - 93; t < 1500; ++t) EXPECT_TRUE(r.has(h, t)) << t;
      std::int64_t bits = 0;
      for (std::int64_t t = 0; t < 1500; ++t) bits += r.has(h, t) ? 1 : 0;
      EXPECT_EQ(r.attended[static_cast<std::size_t>(h)], bits);
      EXPECT_LT(bits, 1500);
    }
  }
}

TEST_F(Choice, TheLastAppendedTokenIsAttendedAtOnce) {
  LayerSpec spec{.kv = {.shape = {4, 2, 64, 64}, .tokens = 1500}, .recent = 64};
  LayerCase layer(spec);
  KvView kv = layer.kv().view();
  for (kv.tokens = 1500 - 63; kv.tokens <= 1500; ++kv.tokens) {
    const StepResult r = cpu_step(*team_, *workspace_, layer.kv().query(), kv, &layer.index(), options_of(0.5f));
    for (int h = 0; h < 2; ++h) {
      EXPECT_TRUE(r.has(h, kv.tokens - 1));
      for (std::int64_t t = kv.tokens; t < r.words * 64; ++t) EXPECT_FALSE(r.has(h, t));
    }
  }
}

// The clusters' tokens permuted in the cache (keys and values with them): the same tokens are chosen, at their new places.
TEST_F(Choice, DoesNotDependOnTheOrderOfTokens) {
  LayerSpec spec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 1500}};
  LayerCase layer(spec);
  LayerCase moved(spec);
  const std::int64_t first = spec.sinks;
  const std::int64_t last = spec.kv.tokens - spec.recent;
  std::vector<std::int64_t> to(static_cast<std::size_t>(last - first));
  std::iota(to.begin(), to.end(), first);
  std::mt19937_64 random(5);
  std::shuffle(to.begin(), to.end(), random);
  for (int h = 0; h < 2; ++h) {
    for (std::int64_t t = first; t < last; ++t) {
      moved.kv().set_k(to[static_cast<std::size_t>(t - first)], h, layer.kv().k(t, h));
      moved.kv().set_v(to[static_cast<std::size_t>(t - first)], h, layer.kv().v(t, h));
    }
  }
  // The same clusters over the new numbers.
  auto segment = std::make_shared<Segment>(*layer.index().segments[0]);
  for (HeadClusters& head : segment->heads) {
    for (std::int32_t& t : head.tokens) t = static_cast<std::int32_t>(to[static_cast<std::size_t>(t - first)]);
    for (int c = 0; c < head.count; ++c)
      std::sort(head.tokens.begin() + head.begin[static_cast<std::size_t>(c)],
                head.tokens.begin() + head.begin[static_cast<std::size_t>(c) + 1]);
  }
  moved.index().segments = {segment};
  moved.index().tables.clear();
  for (int h = 0; h < 2; ++h) moved.index().tables.push_back(make_table(moved.index().segments, h));

  // Not for `paper`: Algorithm 1 samples and cuts inside clusters, in the order of their tokens.
  const StepResult a = step(layer, options_of(0.9f));
  const StepResult b = step(moved, options_of(0.9f));
  EXPECT_LT(a.attended[0], spec.kv.tokens);
  for (int h = 0; h < 2; ++h) {
    int differ = 0;
    for (std::int64_t t = first; t < last; ++t)
      differ += a.has(h, t) != b.has(h, to[static_cast<std::size_t>(t - first)]) ? 1 : 0;
    // Verify sums a cluster's weights in token order: one cluster at the threshold may fall on the other side.
    EXPECT_LE(differ, spec.cluster_size);
    if (differ > 0) continue;
    const double bound = tolerance(layer.kv()).output;
    for (std::size_t i = 0; i < 4 * 64; ++i) {
      const std::size_t at = static_cast<std::size_t>(h) * 4 * 64 + i;
      ASSERT_NEAR(a.out[at], b.out[at], bound);
    }
  }
}

// The largest share of a query head's mass that one topic holds.
double heaviest_topic(LayerCase& layer, const std::vector<double>& weights, int q_head) {
  std::vector<double> mass(static_cast<std::size_t>(layer.spec().topics), 0.0);
  for (std::size_t t = 0; t < layer.topics().size(); ++t) {
    mass[static_cast<std::size_t>(layer.topics()[t])] += weights[static_cast<std::size_t>(q_head) * layer.topics().size() + t];
  }
  return *std::max_element(mass.begin(), mass.end());
}

// The same clusters dealt to three segments instead of one. With exact estimates the choice is the same.
TEST_F(Choice, SegmentsChooseWhatOneSegmentChooses) {
  LayerSpec spec = exact_spec();
  LayerCase one(spec);
  spec.segments = 3;
  LayerCase three(spec);
  const Shape& shape = spec.kv.shape;
  const auto weights = true_weights(one.kv().query(), one.kv().view());
  for (const float mass : {0.5f, 0.9f}) {
    const StepResult a = step(one, options_of(mass));
    const StepResult b = step(three, options_of(mass));
    for (int q = 0; q < shape.q_heads; ++q) {
      const double mass_a = mass_reached(a, weights, shape, spec.kv.tokens, q);
      const double mass_b = mass_reached(b, weights, shape, spec.kv.tokens, q);
      EXPECT_GE(mass_b, mass - 1e-4);
      // All clusters of a topic have one density: the threshold may take the last topic whole or in part.
      EXPECT_NEAR(mass_a, mass_b, heaviest_topic(one, weights, q));
    }
    // The same for each of the group's four heads.
    const double topic = 1.5 * static_cast<double>(spec.kv.tokens) / spec.topics;
    for (std::size_t h = 0; h < 2; ++h)
      EXPECT_NEAR(static_cast<double>(a.attended[h]), static_cast<double>(b.attended[h]), 4 * topic);
  }
}

TEST_F(Choice, VerifyRepairsEstimatesThatAreTooLarge) {
  LayerSpec spec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 2000}};
  LayerCase layer(spec);
  // Centroids of half of the topics claim keys twice as long as they are: their masses are overestimated by far.
  auto segment = std::make_shared<Segment>(*layer.index().segments[0]);
  for (HeadClusters& head : segment->heads) {
    for (int c = 0; c < head.count; c += 2) head.centroid_scale[static_cast<std::size_t>(c)] *= 1.4f;
  }
  layer.index().segments = {segment};
  layer.index().tables.clear();
  for (int h = 0; h < 2; ++h) layer.index().tables.push_back(make_table(layer.index().segments, h));
  const auto weights = true_weights(layer.kv().query(), layer.kv().view());
  Options with = options_of(0.9f);
  with.tail_factor = false;
  Options without = with;
  without.verify = false;
  const StepResult a = step(layer, with);
  const StepResult b = step(layer, without);
  const Shape& shape = spec.kv.shape;
  double gained = 0;
  for (int q = 0; q < shape.q_heads; ++q) {
    gained += mass_reached(a, weights, shape, spec.kv.tokens, q) - mass_reached(b, weights, shape, spec.kv.tokens, q);
  }
  EXPECT_GT(gained / shape.q_heads, 0.01);
}

TEST_F(Choice, TailBringsTheOutputNearerToDense) {
  LayerCase layer(LayerSpec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 2000, .v_scale = 0.3f}});
  // Values that follow the topic, so that a cluster's mean says something.
  for (std::int64_t t = 0; t < 2000; ++t) {
    for (int h = 0; h < 2; ++h) {
      std::vector<float> v = layer.kv().v(t, h);
      for (std::size_t i = 0; i < v.size(); ++i)
        v[i] += std::sin(static_cast<float>(layer.topics()[static_cast<std::size_t>(t)]) * (1.0f + static_cast<float>(i)));
      layer.kv().set_v(t, h, v);
    }
  }
  layer.rebuild();
  const StepResult dense = reference_step(layer.kv().query(), layer.kv().view(), nullptr, Options{});
  Options options = options_of(0.5f);
  const auto error = [&](const StepResult& r) {
    double sum = 0;
    for (std::size_t i = 0; i < r.out.size(); ++i) sum += std::pow(r.out[i] - dense.out[i], 2);
    return std::sqrt(sum);
  };
  const double without = error(step(layer, options));
  options.tail_clusters = 128;
  EXPECT_LT(error(step(layer, options)), 0.5 * without);
}

TEST_F(Choice, ASmallerMarginAttendsMore) {
  LayerCase layer(LayerSpec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 2000}});
  std::int64_t before = 0;
  for (const float margin : {1.0f, 0.5f, 0.1f}) {
    layer.index().margin = {margin, margin};
    const std::int64_t now = step(layer, options_of(0.8f)).attended[0];
    EXPECT_GT(now, before);
    before = now;
  }
  layer.index().margin = {-1.0f, 1.0f};
  const StepResult r = step(layer, options_of(0.8f));
  EXPECT_EQ(r.attended[0], 2000);
  EXPECT_LT(r.attended[1], 2000);
}

TEST_F(Choice, ReportCountsTheBytesOfRowsAndMetadata) {
  LayerSpec spec{.kv = {.shape = {8, 2, 64, 128}, .v_type = DType::f32, .tokens = 1500}};
  LayerCase layer(spec);
  const StepResult r = step(layer, options_of(0.7f));
  const double row = 64 * 2 + 128 * 4;
  double expected = 0;
  for (int h = 0; h < 2; ++h) {
    expected += row * static_cast<double>(r.attended[static_cast<std::size_t>(h)]);
    expected += layer.index().tables[static_cast<std::size_t>(h)].count * (64.0 + 4 + 4 + 4);  // centroid, scale, spread, size
  }
  EXPECT_DOUBLE_EQ(r.report.bytes, expected);
  EXPECT_DOUBLE_EQ(r.report.dense_bytes, row * 1500 * 2);
  EXPECT_GT(r.report.total_us, 0);
}

}  // namespace
}  // namespace tactic::test
