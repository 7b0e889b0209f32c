// Against kvpress 0.5.5 on the same tensors: see kvpress_fixture.py.
#include <gtest/gtest.h>

#include "baselines/rules.h"
#include "cases.h"
#include "kvpress_fixture.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{kvpress::kKvHeads * kvpress::kGroup, kvpress::kKvHeads, kvpress::kDim, kvpress::kDim};

// As in kvpress_fixture.py.
std::vector<float> numbers(std::size_t count, std::uint64_t seed) {
  std::vector<float> out;
  std::uint64_t state = seed;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    out.push_back((static_cast<float>((state >> 33) % 17) - 8) / 4);
  }
  return out;
}

class Kvpress : public ::testing::Test {
 protected:
  Kvpress() : layer_(kShape, kvpress::kTokens, 1) {
    const auto dim = static_cast<std::size_t>(kvpress::kDim);
    const std::vector<float> k = numbers(kvpress::kTokens * kvpress::kKvHeads * dim, 2);
    for (int t = 0; t < kvpress::kTokens; ++t) {
      for (int h = 0; h < kvpress::kKvHeads; ++h) {
        const auto at = k.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(t * kvpress::kKvHeads + h) * dim);
        layer_.kv().set_k(t, h, std::vector<float>(at, at + kvpress::kDim));
      }
    }
    const std::vector<float> q = numbers(static_cast<std::size_t>(kvpress::kTokens) * static_cast<std::size_t>(layer_.row()), 1);
    std::copy(q.begin(), q.end(), layer_.query(0));
    layer_.kv().params().scale = 0.125f;  // 1 / sqrt(64)
    layer_.see(0, kvpress::kTokens);
  }
  Lists kept(const BaselineOptions& options, double budget) {
    Selection selection = layer_.choose(options, tokens(budget), kvpress::kTokens);
    for (auto& list : selection.tokens) list.pop_back();  // the step's own token
    return selection.tokens;
  }
  WatchedCase layer_;
};

TEST_F(Kvpress, SnapKv) {
  EXPECT_EQ(kept({.method = Baseline::snapkv, .pool = Pool::average}, kvpress::kTokens / 2.0), kvpress::kSnapKv);
}

TEST_F(Kvpress, AdaKvWithItsSafeguard) {
  BaselineOptions options{.method = Baseline::ada_snapkv, .pool = Pool::average, .ada_rule = AdaRule::safeguard};
  EXPECT_EQ(kept(options, kvpress::kTokens / 2.0), kvpress::kAdaSnapKv);
  options.ada_share = 0.95f;
  EXPECT_NE(kvpress::kAdaSnapKvSafe, kvpress::kAdaSnapKv) << "the safeguard must matter";
  EXPECT_EQ(kept(options, kvpress::kTokens / 2.0), kvpress::kAdaSnapKvSafe);
}

TEST_F(Kvpress, StreamingLlm) {
  EXPECT_EQ(kept({.method = Baseline::streaming_llm}, kvpress::kTokens / 4.0), kvpress::kStreamingLlm);
}

// What its ObservedAttention gives each token, of which H2O ranks the sums.
TEST_F(Kvpress, ColumnSums) {
  const Isa before = active_isa();
  for (const Isa isa : supported_isas()) {
    force_isa(isa);
    layer_.see(0, kvpress::kTokens);
    const auto columns = layer_.watch().columns(kvpress::kTokens);
    ASSERT_EQ(columns.size(), static_cast<std::size_t>(kvpress::kKvHeads * kvpress::kTokens));
    for (int h = 0; h < kvpress::kKvHeads; ++h) {
      for (int t = 0; t < kvpress::kTokens; ++t) {
        const double mean = columns[static_cast<std::size_t>(h * kvpress::kTokens + t)] / kvpress::kGroup;
        const double expected = 1e-6 * kvpress::kMillionthsOfColumns[static_cast<std::size_t>(h)][static_cast<std::size_t>(t)];
        // f32 sums of up to 160 weights there, of 16 here; the fixture is rounded to 1e-6.
        EXPECT_NEAR(mean, expected, 1e-6 + 160 * 6e-8 * expected) << name_of(isa) << ' ' << h << ' ' << t;
      }
    }
  }
  force_isa(before);
}

// Its layer budgets include no window: ours is what they call the number of kept tokens plus the window.
TEST_F(Kvpress, PyramidLayerBudgets) {
  for (const auto& row : kvpress::kPyramid) {
    const int prompt = row[0], capacity = row[1] + kvpress::kWindow, layers = row[2];
    for (int layer = 0; layer < layers; ++layer) {
      EXPECT_EQ(pyramid_budget(capacity, kvpress::kWindow, 20, prompt, {layer, layers}) - kvpress::kWindow,
                row[static_cast<std::size_t>(3 + layer)])
          << "prompt " << prompt << ", layer " << layer;
    }
  }
}

}  // namespace
}  // namespace tactic::test
