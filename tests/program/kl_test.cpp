// The distance between next-token distributions: hand-worked cases.
#include "kl.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace tactic::program {
namespace {

TEST(Kl, OfADistributionToItselfIsZero) {
  const std::vector<float> logits = {0.5f, -3.0f, 12.0f, 0.0f};
  EXPECT_NEAR(kl_divergence(logits, logits), 0.0, 1e-15);
}

// p = (1/2, 1/2), q = (3/4, 1/4): 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3).
TEST(Kl, MatchesAHandWorkedPair) {
  const std::vector<float> p = {0, 0};
  const std::vector<float> q = {static_cast<float>(std::log(3.0)), 0};
  EXPECT_NEAR(kl_divergence(p, q), 0.5 * std::log(4.0 / 3.0), 1e-7);  // log(3) is rounded to float
}

TEST(Kl, IgnoresAConstantAddedToTheLogits) {
  const std::vector<float> p = {1, 2, 3};
  const std::vector<float> q = {3, 2, 1};
  const std::vector<float> shifted = {259, 258, 257};
  EXPECT_NEAR(kl_divergence(p, q), kl_divergence(p, shifted), 1e-12);
}

TEST(Kl, OfATokenThatTheReferenceExcludesIsZero) {
  const float none = -std::numeric_limits<float>::infinity();
  const std::vector<float> p = {0, 0, none};
  const std::vector<float> q = {0, 0, 0};
  EXPECT_NEAR(kl_divergence(p, q), std::log(1.5), 1e-12);  // each of p's halves is a third of q
}

TEST(Largest, IsTheLowestOfEquals) { EXPECT_EQ(largest(std::vector<float>{1, 7, 7, 2}), 1); }

}  // namespace
}  // namespace tactic::program
