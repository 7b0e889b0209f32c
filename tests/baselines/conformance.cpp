// Every method against its transcription, on seeded layers.
#include <gtest/gtest.h>

#include "transcription.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{6, 2, 64, 64};
constexpr std::int64_t kPrompt = 300, kGenerated = 20;

std::vector<std::int32_t> with_generated(std::vector<std::int32_t> list, std::int64_t token) {
  for (std::int64_t t = kPrompt; t <= token; ++t) list.push_back(static_cast<std::int32_t>(t));
  return list;
}

class Conformance : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  Conformance() : layer_(kShape, kPrompt, kGenerated, GetParam(), 3), oracle_(layer_) {
    layer_.see(0, 200);
    layer_.see(200, kPrompt);
  }
  void expect_kept(const BaselineOptions& options, double budget, const Lists& expected, LayerPlace place = {}) {
    for (const std::int64_t token : {kPrompt, kPrompt + 17}) {
      const Selection selection = layer_.choose(options, tokens(budget), token, place);
      ASSERT_EQ(selection.tokens.size(), expected.size());
      EXPECT_FALSE(selection.by_query_head);
      for (std::size_t h = 0; h < expected.size(); ++h) EXPECT_EQ(selection.tokens[h], with_generated(expected[h], token));
    }
  }
  WatchedCase layer_;
  Transcription oracle_;
};

TEST_P(Conformance, SnapKvKeepsTheWindowAndWhatItLooksAt) {
  expect_kept({.method = Baseline::snapkv}, 90, oracle_.snapkv(90, 32, 7));
}

TEST_P(Conformance, PyramidKvKeepsMoreInLowerLayers) {
  // B = 80: from 160 - 4 = 156 to 4 in steps of 152 / 3, plus 32.
  expect_kept({.method = Baseline::pyramidkv}, 112, oracle_.snapkv(156 + 32, 32, 7), {0, 4});
  expect_kept({.method = Baseline::pyramidkv}, 112, oracle_.snapkv(105 + 32, 32, 7), {1, 4});
  expect_kept({.method = Baseline::pyramidkv}, 112, oracle_.snapkv(55 + 32, 32, 7), {2, 4});
  expect_kept({.method = Baseline::pyramidkv}, 112, oracle_.snapkv(4 + 32, 32, 7), {3, 4});
}

TEST_P(Conformance, AdaSnapKvDividesALayersTokensByTheirScores) {
  expect_kept({.method = Baseline::ada_snapkv}, 92, oracle_.ada(92, 32, 7));
}

TEST_P(Conformance, H2oKeepsHeavyAndRecentTokens) { expect_kept({.method = Baseline::h2o}, 71, oracle_.h2o(71)); }

TEST_P(Conformance, QuestChoosesPagesForEachQueryHead) {
  for (const std::int64_t token : {kPrompt, kPrompt + 17}) {  // the newest page holds prompt tokens, then none
    const Selection selection = layer_.choose({.method = Baseline::quest}, tokens(100, true), token);
    EXPECT_TRUE(selection.by_query_head);
    for (int q = 0; q < kShape.q_heads; ++q)
      EXPECT_EQ(selection.tokens[static_cast<std::size_t>(q)], with_generated(oracle_.quest(token, {q}, 100, 16), token));
  }
}

TEST_P(Conformance, QuestSharesPagesInAGroupWhenTheBudgetIsOfKvHeads) {
  const std::int64_t token = kPrompt + 3;
  const Selection selection = layer_.choose({.method = Baseline::quest}, tokens(100), token);
  EXPECT_FALSE(selection.by_query_head);
  for (int h = 0; h < kShape.kv_heads; ++h) {
    const auto expected = oracle_.quest(token, {3 * h, 3 * h + 1, 3 * h + 2}, 100, 16);
    EXPECT_EQ(selection.tokens[static_cast<std::size_t>(h)], with_generated(expected, token));
  }
}

TEST_P(Conformance, OracleTopKTakesTheHeaviestTokens) {
  const std::int64_t token = kPrompt + 5;
  const Selection own = layer_.choose({.method = Baseline::oracle_top_k}, tokens(50, true), token);
  for (int q = 0; q < kShape.q_heads; ++q)
    EXPECT_EQ(own.tokens[static_cast<std::size_t>(q)], with_generated(oracle_.top_k(token, {q}, 50), token));
  const Selection shared = layer_.choose({.method = Baseline::oracle_top_k}, tokens(50), token);
  for (int h = 0; h < kShape.kv_heads; ++h) {
    EXPECT_EQ(shared.tokens[static_cast<std::size_t>(h)],
              with_generated(oracle_.top_k(token, {3 * h, 3 * h + 1, 3 * h + 2}, 50), token));
  }
}

TEST_P(Conformance, OracleTopPTakesTheFewestTokensThatHoldTheMassAndUnitesTheGroup) {
  const std::int64_t token = kPrompt + 5;
  for (const float mass : {0.5f, 0.9f, 0.999f}) {
    const Selection selection = layer_.choose({.method = Baseline::oracle_top_p, .mass = mass}, tokens(1), token);
    ASSERT_EQ(selection.tokens.size(), 2u);
    for (int h = 0; h < kShape.kv_heads; ++h) {
      std::set<std::int32_t> expected;
      for (int q = 3 * h; q < 3 * h + 3; ++q) {
        const auto list = with_generated(oracle_.top_p(token, q, static_cast<double>(mass)), token);
        EXPECT_EQ(selection.own[static_cast<std::size_t>(q)], static_cast<std::int64_t>(list.size()));
        expected.insert(list.begin(), list.end());
      }
      EXPECT_EQ(selection.tokens[static_cast<std::size_t>(h)], std::vector<std::int32_t>(expected.begin(), expected.end()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Conformance, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace tactic::test
