// The methods' rules on cases worked by hand.
#include "baselines/rules.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "cases.h"

namespace tactic::test {
namespace {

using Tokens = std::vector<std::int32_t>;
using Counts = std::vector<std::int64_t>;

TEST(Largest, TiesGoToTheEarlierTokenAndTheResultAscends) {
  const std::vector<float> scores = {1, 3, 2, 3, 2, 0};
  EXPECT_EQ(largest(scores, 0), Tokens{});
  EXPECT_EQ(largest(scores, 1), (Tokens{1}));
  EXPECT_EQ(largest(scores, 3), (Tokens{1, 2, 3}));
  EXPECT_EQ(largest(scores, 9), (Tokens{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(largest(std::vector<float>{-1, -0.0f, 0, -2}, 2), (Tokens{1, 2})) << "both zeros are equal";
}

TEST(Pooled, MaximumAndAverageOverSeven) {
  const std::vector<float> scores = {0, 0, 0, 0, 7, 0, 0, 0, 0, 14};
  EXPECT_EQ(pooled(scores, 7, Pool::maximum), (std::vector<float>{0, 7, 7, 7, 7, 7, 14, 14, 14, 14}));
  EXPECT_EQ(pooled(scores, 7, Pool::average), (std::vector<float>{0, 1, 1, 1, 1, 1, 3, 3, 2, 2}));
  EXPECT_EQ(pooled(scores, 1, Pool::maximum), scores);
  EXPECT_EQ(pooled(std::vector<float>{-3, -5}, 3, Pool::maximum), (std::vector<float>{-3, -3})) << "nothing beyond the ends";
}

// C = 132, w = 32: B = 100, least floor(100 / 20) = 5, most 195; five layers: steps of 47.5.
TEST(PyramidBudget, FallsInEqualRoundedSteps) {
  Counts budgets;
  for (int layer = 0; layer < 5; ++layer) budgets.push_back(pyramid_budget(132, 32, 20, 1000, {layer, 5}) - 32);
  EXPECT_EQ(budgets, (Counts{195, 148, 100, 53, 5}));  // 147.5 and 52.5 round up
}

// 167 others < 195: the first layer takes all 168 - 1, the last 200 - 167 = 33.
TEST(PyramidBudget, AFirstLayerThatTakesTheWholePromptLeavesMoreForTheLast) {
  Counts budgets;
  for (int layer = 0; layer < 3; ++layer) budgets.push_back(pyramid_budget(132, 32, 20, 199, {layer, 3}) - 32);
  EXPECT_EQ(budgets, (Counts{167, 100, 33}));
}

TEST(PyramidBudget, IsTheCapacityForAPromptThatFitsAndForOneLayer) {
  EXPECT_EQ(pyramid_budget(132, 32, 20, 131, {0, 5}), 132);
  EXPECT_EQ(pyramid_budget(132, 32, 20, 1000, {0, 1}), 132);
}

// Two heads, B = 5: the ten best are eight of head 0 (9 .. 2) and two of head 1 (8.5, 1.5 > 1). floor(0.2 * 5) = 1.
// round(0.8 * 8 + 1) = round(7.4) = 7; round(0.8 * 2 + 1) = round(2.6) = 3.
TEST(AdaBudgets, FollowTheCodesRule) {
  const std::vector<float> scores = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0, /**/ 8.5f, 1.5f, 0, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(ada_budgets(scores, 2, 5, 0.2f, AdaRule::code), (Counts{7, 3}));
  // round(0.2 * 8 + floor(0.8 * 5) = 5.6) = 6; round(0.2 * 2 + 4 = 4.4) = 4.
  EXPECT_EQ(ada_budgets(scores, 2, 5, 0.2f, AdaRule::paper), (Counts{6, 4}));
}

// B = 2 and a = 0.5: c = 3 and 1, floor(1) = 1: 1.5 + 1 = 2.5 and 0.5 + 1 = 1.5, both rounded to the even 2.
TEST(AdaBudgets, HalvesGoToTheEvenNumber) {
  EXPECT_EQ(ada_budgets(std::vector<float>{5, 4, 3, /**/ 6, 0, 0}, 2, 2, 0.5f, AdaRule::code), (Counts{2, 2}));
}

// Capacity 4 without a window: head 1 has the eight best; safe is floor(0.5 * 4) = 2 of each, then the 4 best of the rest.
TEST(AdaSafeguard, EachHeadKeepsItsBestBeforeAllCompete) {
  const std::vector<float> scores = {1, 2, 3, 4, 0, 0, 0, 0, /**/ 18, 17, 16, 15, 14, 13, 12, 11};
  const Lists kept = ada_safeguard(scores, 2, 4, 0, 0.5f);
  EXPECT_EQ(kept[0], (Tokens{2, 3}));
  EXPECT_EQ(kept[1], (Tokens{0, 1, 2, 3, 4, 5}));
  // Two window tokens are a head's best already: nothing else is safe.
  EXPECT_EQ(ada_safeguard(scores, 2, 4, 2, 0.5f)[0], Tokens{});
}

// q = (1, -2); low = (-1, -3), high = (2, 5): 1 * 2 + (-2) * (-3) = 8.
TEST(PageBound, TakesTheBetterEndOfEveryDimension) {
  const float q[] = {1, -2}, low[] = {-1, -3}, high[] = {2, 5};
  EXPECT_EQ(page_bound(q, low, high, 2), 8.0f);
}

TEST(PageBound, IsNoLessThanAnyKeysLogit) {
  KvCase kv({.shape = {1, 1, 64, 64}, .tokens = 16, .seed = 5});
  std::vector<float> low(64, 1e9f), high(64, -1e9f);
  for (int t = 0; t < 16; ++t) {
    for (std::size_t i = 0; i < 64; ++i) {
      low[i] = std::min(low[i], kv.k(t, 0)[i]);
      high[i] = std::max(high[i], kv.k(t, 0)[i]);
    }
  }
  for (int t = 0; t < 16; ++t) {
    const std::vector<float> k = kv.k(t, 0);
    const float logit = std::inner_product(k.begin(), k.end(), kv.q().begin(), 0.0f);
    EXPECT_GE(page_bound(kv.q().data(), low.data(), high.data(), 64), logit);
  }
}

// Weights of 8 tokens in 32nds, the last two generated: 12 + 1 are held, 0.75 * 32 = 24 are needed: 8 and 4 more reach 25.
TEST(FewestForMass, TakesTokensUntilEveryHeadHasIt) {
  const std::vector<double> weights = {1 / 32.0, 8 / 32.0, 2 / 32.0, 4 / 32.0, 3 / 32.0, 1 / 32.0, 12 / 32.0, 1 / 32.0};
  const std::vector<float> order(weights.begin(), weights.end());
  EXPECT_EQ(fewest_for_mass(weights, 1, 6, order, 0.75, 0), (Tokens{1, 3}));
  EXPECT_EQ(fewest_for_mass(weights, 1, 6, order, 0.4, 0), Tokens{}) << "13 / 32 are generated";
  EXPECT_EQ(fewest_for_mass(weights, 1, 6, order, 0.75, 1), (Tokens{0, 1, 3})) << "sink 0 is forced, 22 / 32 are too few";
  EXPECT_EQ(fewest_for_mass(weights, 1, 6, order, 1.0, 0).size(), 6u);
}

TEST(FewestForMass, SharedOrderGoesOnForTheHeadThatHasLess) {
  const std::vector<double> weights = {0.5, 0.25, 0.25, 0, /**/ 0, 0.25, 0.25, 0.5};
  const std::vector<float> order = {0.5f, 0.5f, 0.5f, 0.5f};
  EXPECT_EQ(fewest_for_mass(weights, 2, 4, order, 0.5, 0), (Tokens{0, 1, 2}));
}

TEST(Budgets, FromText) {
  EXPECT_EQ(budget_of("512").amount, 512);
  EXPECT_EQ(budget_of("6.5%").unit, Budget::Unit::share);
  EXPECT_NEAR(budget_of("6.5%").amount, 0.065, 1e-15);
  for (const char* bad : {"", "%", "0", "-3", "1.5", "0%", "101%", "12x", "nan", "1e999"}) {
    try {
      budget_of(bad);
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), Status::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(bad), std::string::npos);
    }
  }
}

constexpr Shape kShape{4, 2, 64, 64};

TEST(Budgets, AShareIsOfThePromptAndRounded) {
  EXPECT_EQ(head_budgets({.method = Baseline::snapkv}, budget_of("6.5%"), kShape, {0, 1}, 1000), (Counts{65, 65}));
  EXPECT_EQ(head_budgets({.method = Baseline::snapkv}, budget_of("6.5%"), kShape, {0, 1}, 1008), (Counts{66, 66}));
}

TEST(Budgets, ATableOfQueryHeadsIsTheirMeanForAMethodOfKvHeads) {
  Budget budget;
  budget.table = {{100, 101, 201, 202}, {1000, 1000, 1000, 1000}};
  budget.of_query_heads = true;
  EXPECT_EQ(head_budgets({.method = Baseline::snapkv}, budget, kShape, {0, 2}, 5000), (Counts{101, 202}));  // 100.5, 201.5
  EXPECT_EQ(head_budgets({.method = Baseline::quest}, budget, kShape, {0, 2}, 5000), (Counts{100, 101, 201, 202}));
  budget.of_query_heads = false;
  budget.table = {{100, 201}, {1000, 1000}};
  EXPECT_EQ(head_budgets({.method = Baseline::quest}, budget, kShape, {0, 2}, 5000), (Counts{100, 201}));
  EXPECT_EQ(head_budgets({.method = Baseline::quest, .sharing = Sharing::united}, budget, kShape, {0, 2}, 5000),
            (Counts{100, 100, 201, 201}));
}

std::string refusal_of(const BaselineOptions& options, const Budget& budget) {
  try {
    head_budgets(options, budget, kShape, {0, 1}, 1000);
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::invalid_argument);
    return error.what();
  }
  return "";
}

TEST(Budgets, BelowWhatAMethodNeedsIsRefusedInOneLineThatSaysHowMuch) {
  const struct {
    Baseline method;
    int least;
  } cases[] = {{Baseline::quest, 48},      {Baseline::streaming_llm, 5}, {Baseline::snapkv, 33},     {Baseline::pyramidkv, 33},
               {Baseline::ada_snapkv, 33}, {Baseline::h2o, 2},           {Baseline::oracle_top_k, 1}};
  for (const auto& c : cases) {
    EXPECT_EQ(refusal_of({.method = c.method}, tokens(c.least)), "") << name_of(c.method);
    const std::string message = refusal_of({.method = c.method}, tokens(c.least - 1));
    EXPECT_NE(message.find("budget is " + std::to_string(c.least - 1) + " tokens"), std::string::npos) << message;
    EXPECT_NE(message.find("at least " + std::to_string(c.least) + " for " + name_of(c.method)), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  Budget table;
  table.table = {{100, 40}};
  EXPECT_NE(refusal_of({.method = Baseline::quest}, table).find("in layer 0, KV head 1"), std::string::npos);
  table.table = {{100, 100}, {100, 100}};
  EXPECT_NE(refusal_of({.method = Baseline::quest}, table).find("2 layers of 2 heads"), std::string::npos);
}

TEST(Options, EveryRangeIsChecked) {
  const BaselineOptions bad[] = {{.mass = 0},         {.mass = 1.5f},      {.page_tokens = 0},     {.window = 0},
                                 {.window = 129},     {.pool_kernel = 4},  {.sinks = -1},          {.forced_sinks = -1},
                                 {.pyramid_beta = 0}, {.ada_share = 1.5f}, {.mass = std::nanf("")}};
  for (const BaselineOptions& options : bad) EXPECT_THROW(validate(options), Error);
  EXPECT_NO_THROW(validate(BaselineOptions{}));
}

TEST(Names, GoBothWays) {
  for (int i = 0; i < kBaselines; ++i) {
    const auto method = static_cast<Baseline>(i);
    EXPECT_EQ(baseline_named(name_of(method)), method);
  }
  EXPECT_FALSE(baseline_named("tactic"));
}

}  // namespace
}  // namespace tactic::test
