// Lossless steps: method full, mass 1, short contexts, no index; and what a NaN does.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/layer.h"

namespace tactic::test {
namespace {

Options tactic_options() {
  Options o;
  o.min_context = 256;
  o.cluster_size = 16;
  return o;
}

class Dense : public testing::Test {
 protected:
  LayerSpec spec_{.kv = {.shape = {8, 2, 64, 64}, .tokens = 1200}};
  LayerCase layer_{spec_};
  std::unique_ptr<Team> team_ = make_thread_team(2);
  WorkspacePtr workspace_ = make_workspace();

  StepResult step(const Options& options, const LayerIndex* index) {
    return cpu_step(*team_, *workspace_, layer_.kv().query(), layer_.kv().view(), index, options);
  }
  void expect_everything_attended(const StepResult& r) {
    for (int h = 0; h < spec_.kv.shape.kv_heads; ++h) {
      EXPECT_EQ(r.attended[static_cast<std::size_t>(h)], spec_.kv.tokens);
      for (std::int64_t t = 0; t < spec_.kv.tokens; ++t) ASSERT_TRUE(r.has(h, t)) << h << ' ' << t;
      for (std::int64_t t = spec_.kv.tokens; t < r.words * 64; ++t) ASSERT_FALSE(r.has(h, t)) << h << ' ' << t;
    }
    for (const float mass : r.estimated) EXPECT_EQ(mass, 1.0f);
    EXPECT_EQ(r.report.bytes, r.report.dense_bytes);
  }
  void expect_dense_output(const StepResult& r) {
    const StepResult wanted = reference_step(layer_.kv().query(), layer_.kv().view(), nullptr, Options{});
    const Tolerance bound = tolerance(layer_.kv());
    for (std::size_t i = 0; i < r.out.size(); ++i) ASSERT_NEAR(r.out[i], wanted.out[i], bound.output) << i;
    for (std::size_t i = 0; i < r.lse.size(); ++i) ASSERT_NEAR(r.lse[i], wanted.lse[i], bound.weight) << i;
  }
};

TEST_F(Dense, MassOneAttendsEveryTokenAndGivesTheReferenceOutput) {
  for (const Method method : {Method::tactic, Method::paper}) {
    Options options = tactic_options();
    options.method = method;
    options.mass = 1;
    const StepResult r = step(options, &layer_.index());
    EXPECT_EQ(r.status, Status::ok);
    expect_everything_attended(r);
    expect_dense_output(r);
  }
}

TEST_F(Dense, MassOneIsMethodFullBitForBit) {
  Options options = tactic_options();
  options.mass = 1;
  const StepResult one = step(options, &layer_.index());
  options = tactic_options();
  options.method = Method::full;
  const StepResult full = step(options, &layer_.index());
  EXPECT_EQ(one.out, full.out);
  EXPECT_EQ(one.lse, full.lse);
}

TEST_F(Dense, MethodFullIsTheReferenceDenseOnEveryIsaAndTeam) {
  Options options = tactic_options();
  options.method = Method::full;
  for (const Isa isa : supported_isas()) {
    const IsaScope scope(isa);
    for (int workers = 1; workers <= 3; ++workers) {
      team_ = make_thread_team(workers);
      expect_dense_output(step(options, &layer_.index()));
    }
  }
}

TEST_F(Dense, ShortContextRunsDense) {
  Options options = tactic_options();
  options.min_context = static_cast<int>(spec_.kv.tokens) + 1;
  expect_everything_attended(step(options, &layer_.index()));
  options.min_context = static_cast<int>(spec_.kv.tokens);
  EXPECT_LT(step(options, &layer_.index()).attended[0], spec_.kv.tokens);
}

TEST_F(Dense, NoIndexOrAnEmptyOneRunsDense) {
  expect_everything_attended(step(tactic_options(), nullptr));
  const LayerIndex empty;
  expect_everything_attended(step(tactic_options(), &empty));
}

TEST_F(Dense, AllHeadsDenseByMarginGiveTheReferenceOutput) {
  layer_.index().margin.assign(2, -1.0f);
  const StepResult r = step(tactic_options(), &layer_.index());
  for (const std::int64_t attended : r.attended) EXPECT_EQ(attended, spec_.kv.tokens);
  for (const float mass : r.estimated) EXPECT_EQ(mass, 1.0f);
  expect_dense_output(r);
}

TEST_F(Dense, MoreWorkersThanTokensIsCorrect) {
  LayerSpec tiny{.kv = {.shape = {8, 2, 64, 64}, .tokens = 2}, .sinks = 0, .recent = 0};
  LayerCase layer(tiny);
  team_ = make_thread_team(5);
  const StepResult got = cpu_step(*team_, *workspace_, layer.kv().query(), layer.kv().view(), nullptr, Options{});
  const StepResult wanted = reference_step(layer.kv().query(), layer.kv().view(), nullptr, Options{});
  for (std::size_t i = 0; i < got.out.size(); ++i) ASSERT_NEAR(got.out[i], wanted.out[i], tolerance(layer.kv()).output);
}

TEST_F(Dense, NoTokensGiveZerosAndNoMass) {
  KvView kv = layer_.kv().view();
  kv.tokens = 0;
  const StepResult r = cpu_step(*team_, *workspace_, layer_.kv().query(), kv, nullptr, Options{});
  EXPECT_EQ(r.status, Status::ok);
  for (const float x : r.out) EXPECT_EQ(x, 0.0f);
  for (const float x : r.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
}

// The values that a NaN or an infinity in K, V or q may take a step through.
class NonFinite : public Dense, public testing::WithParamInterface<float> {
 protected:
  // Steps of both pipelines and the dense one, before and after `spoil`: KV head 0 is NaN then, KV head 1 as before.
  template <typename Spoil>
  void expect_only_head_zero_fails(Spoil&& spoil) {
    Options paper = paper_options();
    paper.min_context = 256;
    Options full = tactic_options();
    full.method = Method::full;
    const Options all[] = {tactic_options(), paper, full};
    std::vector<StepResult> before;
    for (const Options& options : all) before.push_back(step(options, &layer_.index()));
    const double bound = tolerance(layer_.kv()).output;
    spoil();
    for (std::size_t i = 0; i < std::size(all); ++i) {
      const StepResult after = step(all[i], &layer_.index());
      EXPECT_EQ(after.status, Status::non_finite) << i;
      const std::size_t half = after.out.size() / 2;
      bool failed = false;
      for (std::size_t at = 0; at < half; ++at) failed |= !std::isfinite(after.out[at]);
      EXPECT_TRUE(failed) << i;
      // Equal pieces of work are cut by what all heads attend, so head 1's sums may be cut elsewhere now: rounding, no more.
      for (std::size_t at = half; at < after.out.size(); ++at) ASSERT_NEAR(after.out[at], before[i].out[at], bound) << i;
      for (std::int64_t t = 0; t < spec_.kv.tokens; ++t) ASSERT_EQ(after.has(1, t), before[i].has(1, t)) << i << ' ' << t;
    }
  }
};

TEST_P(NonFinite, InOneKeyFailsItsKvHeadOnly) {
  expect_only_head_zero_fails([&] {
    std::vector<float> key = layer_.kv().k(spec_.kv.tokens - 1, 0);
    key[5] = GetParam();
    layer_.kv().set_k(spec_.kv.tokens - 1, 0, key);
    // An infinite logit of the wrong sign is a weight of zero: make it the head's largest.
    for (std::size_t g = 0; g < 4; ++g) {
      float& q = layer_.kv().q()[g * 64 + 5];
      q = std::copysign(q, GetParam());
    }
  });
}

TEST_P(NonFinite, InOneValueFailsItsKvHeadOnly) {
  expect_only_head_zero_fails([&] {
    std::vector<float> value = layer_.kv().v(spec_.kv.tokens - 1, 0);
    value[5] = GetParam();
    layer_.kv().set_v(spec_.kv.tokens - 1, 0, value);
  });
}

TEST_P(NonFinite, InOneQueryHeadFailsItsKvHeadOnly) {
  expect_only_head_zero_fails([&] { layer_.kv().q()[2 * 64 + 7] = GetParam(); });
}

INSTANTIATE_TEST_SUITE_P(Values, NonFinite,
                         testing::Values(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                         -std::numeric_limits<float>::infinity()),
                         [](const auto& test) {
                           return std::string(std::isnan(test.param) ? "nan" : test.param > 0 ? "inf" : "minus_inf");
                         });

}  // namespace
}  // namespace tactic::test
