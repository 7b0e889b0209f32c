// A method on a layer over time: hand-worked selections, what is always attended, taking tokens back, what it needs to begin.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "cases.h"

namespace tactic::test {
namespace {

using Tokens = std::vector<std::int32_t>;
constexpr Shape kShape{2, 1, 64, 64};

Tokens range(int first, int last) {
  Tokens tokens(static_cast<std::size_t>(last - first));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}
Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// All keys and queries 0 but what a test sets, so that logits are small integers.
class LayerTest : public ::testing::Test {
 protected:
  static constexpr int kPrompt = 100;
  LayerTest() : layer_(kShape, kPrompt, 30, 1, 1, 1) {
    for (int t = 0; t < kPrompt + 30; ++t) {
      layer_.kv().set_k(t, 0, std::vector<float>(64, 0.0f));
      std::fill_n(layer_.query(t), layer_.row(), 0.0f);
    }
  }
  void set_key(int token, int dim, float value) {
    std::vector<float> k(64, 0.0f);
    k[static_cast<std::size_t>(dim)] = value;
    layer_.kv().set_k(token, 0, k);
  }
  void set_query(int token, int head, int dim, float value) { layer_.query(token)[head * 64 + dim] = value; }

  WatchedCase layer_;
};

TEST_F(LayerTest, StreamingLlmKeepsFourSinksAndTheNewestTokens) {
  const Selection selection = layer_.choose({.method = Baseline::streaming_llm}, tokens(10), kPrompt + 1);
  EXPECT_EQ(selection.tokens[0], range(0, 4) + range(94, 102));
  EXPECT_EQ(selection.own, (std::vector<std::int64_t>{12, 12}));
}

TEST_F(LayerTest, APromptThatFitsIsKeptWhole) {
  for (int i = 0; i < kBaselines; ++i) {
    const auto method = static_cast<Baseline>(i);
    if (method == Baseline::oracle_top_p) continue;
    layer_.see(0, kPrompt);
    const Selection selection = layer_.choose({.method = method}, tokens(kPrompt), kPrompt + 2, {0, 2});
    EXPECT_EQ(selection.tokens[0], range(0, kPrompt + 3)) << name_of(method);
  }
}

// Page p = tokens 16 p .. 16 p + 15. Keys: page 1 has +8 in dim 0, page 2 has -9 in dim 0, page 4 has 4 in dim 1 and 4 in dim 2
// of different tokens. Query (1, 3, 3): bounds 8 for page 1, 0 for 2 (its best end is 0), 24 for 4; 3 pages of 48 tokens: those
// two and the newest token's page 6 (tokens 96 .. 99 of the prompt).
TEST_F(LayerTest, QuestTakesThePagesOfTheLargestBoundAndTheNewestOne) {
  set_key(17, 0, 8);
  set_key(33, 0, -9);
  set_key(65, 1, 4);
  set_key(70, 2, 4);
  for (int head = 0; head < 2; ++head) {
    set_query(kPrompt, head, 0, 1);
    set_query(kPrompt, head, 1, 3);
    set_query(kPrompt, head, 2, 3);
  }
  const Selection selection = layer_.choose({.method = Baseline::quest}, tokens(63), kPrompt);
  EXPECT_EQ(selection.tokens[0], range(16, 32) + range(64, 80) + range(96, 101));
  EXPECT_DOUBLE_EQ(selection.metadata_bytes, 7 * 2 * 64 * 2) << "two f16 rows for each of 7 pages";
}

TEST_F(LayerTest, QuestPagesThatAreAllGeneratedCostNothing) {
  set_key(17, 0, 8);
  set_key(33, 0, 7);
  set_key(50, 0, 6);
  set_query(kPrompt + 20, 0, 0, 1);
  set_query(kPrompt + 20, 1, 0, 1);
  const Selection selection = layer_.choose({.method = Baseline::quest}, tokens(48), kPrompt + 20);  // newest: page 7
  EXPECT_EQ(selection.tokens[0], range(16, 64) + range(kPrompt, kPrompt + 21));
}

TEST_F(LayerTest, QuestTiesGoToEarlierPages) {
  const Selection selection = layer_.choose({.method = Baseline::quest}, tokens(48), kPrompt + 20);
  EXPECT_EQ(selection.tokens[0], range(0, 48) + range(kPrompt, kPrompt + 21));
}

// Head 0 looks at token 20, head 1 at 30 and 31. Each alone, united, and one choice by the sum of weights.
TEST_F(LayerTest, SharingSaysWhatAGroupAttends) {
  set_key(20, 0, 10);
  set_key(30, 1, 10);
  set_key(31, 1, 9);
  set_query(kPrompt, 0, 0, 1);
  set_query(kPrompt, 1, 1, 1);
  BaselineOptions options{.method = Baseline::oracle_top_k, .sharing = Sharing::none};
  const Selection own = layer_.choose(options, tokens(2), kPrompt);
  EXPECT_EQ(own.tokens, (Lists{{0, 20, kPrompt}, {30, 31, kPrompt}}));
  options.sharing = Sharing::united;
  const Selection united = layer_.choose(options, tokens(2), kPrompt);
  EXPECT_EQ(united.tokens, (Lists{{0, 20, 30, 31, kPrompt}}));
  EXPECT_EQ(united.own, (std::vector<std::int64_t>{3, 3}));
  options.sharing = Sharing::one;
  EXPECT_EQ(layer_.choose(options, tokens(2), kPrompt).tokens, (Lists{{20, 30, kPrompt}}));
}

// The last 32 queries all look at token 50 and pool it to 47 .. 53; the next best are ties of nothing: the earliest.
TEST_F(LayerTest, SnapKvPoolsAroundWhatTheWindowLooksAt) {
  set_key(50, 0, 6);
  for (int t = kPrompt - 32; t < kPrompt; ++t) set_query(t, 0, 0, 1);
  layer_.see(0, kPrompt);
  const Selection selection = layer_.choose({.method = Baseline::snapkv}, tokens(32 + 9), kPrompt);
  EXPECT_EQ(selection.tokens[0], range(0, 2) + range(47, 54) + range(68, 101));
}

// Two layers of B = 20 (C = 52): least floor(20 / 20) = 1, most 39.
TEST_F(LayerTest, PyramidKvKeepsTheLayersPart) {
  layer_.see(0, kPrompt);
  EXPECT_EQ(layer_.choose({.method = Baseline::pyramidkv}, tokens(52), kPrompt, {0, 2}).tokens[0].size(), 39u + 32 + 1);
  EXPECT_EQ(layer_.choose({.method = Baseline::pyramidkv}, tokens(52), kPrompt, {1, 2}).tokens[0].size(), 1u + 32 + 1);
}

// All queries look at token 40 once it is there; uniform weights else, of which earlier tokens got more.
TEST_F(LayerTest, H2oKeepsHalfHeavyHalfRecent) {
  set_key(40, 0, 12);
  for (int t = 0; t < kPrompt; ++t) set_query(t, 0, 0, 1);
  layer_.see(0, kPrompt);
  const Selection selection = layer_.choose({.method = Baseline::h2o}, tokens(7), kPrompt);
  EXPECT_EQ(selection.tokens[0], (Tokens{0, 1, 2, 40}) + range(97, 101));
}

TEST_F(LayerTest, ForcedSinksAreKeptInsideTheBudget) {
  set_key(50, 0, 6);
  for (int t = 0; t <= kPrompt; ++t) {
    set_query(t, 0, 0, 1);
    set_query(t, 1, 0, 1);
  }
  layer_.see(0, kPrompt);
  for (int i = 0; i < kBaselines; ++i) {
    const auto method = static_cast<Baseline>(i);
    const BaselineOptions options{.method = method, .mass = 0.3f, .forced_sinks = 6};
    const Selection selection = layer_.choose(options, tokens(64), kPrompt);
    const Tokens& kept = selection.tokens[0];
    for (int t = 0; t < 6; ++t) EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), t)) << name_of(method) << ' ' << t;
    if (method != Baseline::oracle_top_p) {
      EXPECT_LE(kept.size(), 65u) << name_of(method);
    }
  }
}

TEST_F(LayerTest, GeneratedTokensThatWereTakenBackLeaveNoTrace) {
  LayerBaseline layer(kShape, layer_.kv().params(), {.method = Baseline::quest}, tokens(48), {});
  layer.begin(layer_.team(), layer_.view(kPrompt + 1), kPrompt, layer_.watch());
  Selection before, after;
  set_query(kPrompt, 0, 0, 1);
  layer.select(layer_.team(), layer_.query_row(kPrompt), layer_.view(kPrompt + 1), before);
  set_key(kPrompt + 1, 0, 100);  // in page 6, with prompt tokens
  layer.select(layer_.team(), layer_.query_row(kPrompt), layer_.view(kPrompt + 2), after);
  layer.truncate(kPrompt + 1);
  set_key(kPrompt + 1, 0, 0);
  layer.select(layer_.team(), layer_.query_row(kPrompt), layer_.view(kPrompt + 1), after);
  EXPECT_EQ(before.tokens, after.tokens);
  EXPECT_EQ(layer.prompt(), kPrompt);
  layer.truncate(kPrompt - 1);
  EXPECT_EQ(layer.prompt(), -1) << "taking back prompt tokens ends the state";
}

TEST_F(LayerTest, AMethodThatLacksThePromptsQueriesSaysWhatItNeeds) {
  const auto refusal_of = [&](Baseline method) -> std::string {
    try {
      layer_.choose({.method = method}, tokens(40), kPrompt);
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), Status::invalid_state);
      return error.what();
    }
    return "";
  };
  for (const Baseline method : {Baseline::snapkv, Baseline::pyramidkv, Baseline::ada_snapkv, Baseline::h2o})
    EXPECT_NE(refusal_of(method).find(std::string(name_of(method)) + " needs"), std::string::npos);
  layer_.see(0, kPrompt, false);
  EXPECT_EQ(refusal_of(Baseline::snapkv), "");
  EXPECT_NE(refusal_of(Baseline::h2o), "");
}

TEST(Watch, ForgetsColumnsThatOtherTokensGave) {
  WatchedCase layer({2, 1, 64, 64}, 200, 0);
  layer.see(0, 150);
  layer.see(150, 200);
  const std::vector<double> whole(layer.watch().columns(200).begin(), layer.watch().columns(200).end());
  ASSERT_EQ(whole.size(), 200u);
  EXPECT_NEAR(std::accumulate(whole.begin(), whole.end(), 0.0), 2 * 200, 1e-3) << "a weight of 1 from every query";
  layer.see(100, 200);  // the same tokens once more
  ASSERT_EQ(layer.watch().columns(200).size(), 200u);
  EXPECT_TRUE(std::equal(whole.begin(), whole.end(), layer.watch().columns(200).begin()));
  layer.see(100, 150);  // the tokens behind were taken back: their weights can't be
  EXPECT_TRUE(layer.watch().columns(200).empty());
  EXPECT_TRUE(layer.watch().columns(150).empty());
  layer.see(0, 200);
  EXPECT_EQ(layer.watch().columns(200).size(), 200u) << "a new prompt";
  std::fill_n(layer.query(199), layer.row(), 9.0f);
  layer.see(180, 200);  // another token
  EXPECT_TRUE(layer.watch().columns(200).empty());
}

TEST(Watch, KeepsTheNewestQueriesByTokenNumber) {
  WatchedCase layer({2, 1, 64, 64}, 300, 0);
  layer.see(0, 250, false);
  layer.see(250, 300, false);
  std::vector<float> q;
  ASSERT_TRUE(layer.watch().queries(300, 32, q));
  EXPECT_TRUE(std::equal(q.begin(), q.end(), layer.query(268)));
  ASSERT_TRUE(layer.watch().queries(290, 100, q));
  EXPECT_TRUE(std::equal(q.begin(), q.end(), layer.query(190)));
  EXPECT_FALSE(layer.watch().queries(301, 32, q));
  EXPECT_FALSE(layer.watch().queries(200, 32, q)) << "older than the newest 128";
  layer.see(200, 210, false);
  EXPECT_FALSE(layer.watch().queries(211, 32, q)) << "what came behind was taken back";
  EXPECT_TRUE(layer.watch().queries(210, 32, q));
}

TEST(Watch, ComesBackFromAFileAndADamagedOneChangesNothing) {
  WatchedCase layer({2, 1, 64, 64}, 200, 1);
  layer.see(0, 200);
  std::ostringstream out;
  layer.watch().save(out);
  PromptWatch other(layer.shape(), layer.kv().params());
  std::istringstream cut(out.str().substr(0, out.str().size() - 1));
  EXPECT_THROW(other.load(cut), Error);
  std::string flipped = out.str();
  flipped[9] = static_cast<char>(flipped[9] ^ 1);
  std::istringstream damaged(flipped);
  EXPECT_THROW(other.load(damaged), Error);
  std::vector<float> a, b;
  EXPECT_FALSE(other.queries(200, 32, a));
  std::istringstream in(out.str());
  other.load(in);
  ASSERT_TRUE(other.queries(200, 32, a) && layer.watch().queries(200, 32, b));
  EXPECT_EQ(a, b);
  EXPECT_TRUE(std::equal(other.columns(200).begin(), other.columns(200).end(), layer.watch().columns(200).begin()));
}

}  // namespace
}  // namespace tactic::test
