#include "eval/statistics.h"

#include <cmath>

#include "eval/random.h"
#include "support.h"

namespace tactic::eval {
namespace {

TEST(McNemar, IsTheTwoSidedSignTest) {
  EXPECT_DOUBLE_EQ(mcnemar(0, 0), 1.0);
  EXPECT_NEAR(mcnemar(1, 5), 2 * (1 + 6) / 64.0, 1e-12);
  EXPECT_NEAR(mcnemar(5, 1), mcnemar(1, 5), 1e-15);
  EXPECT_NEAR(mcnemar(0, 10), 2.0 / 1024, 1e-12);
  EXPECT_DOUBLE_EQ(mcnemar(4, 4), 1.0);
}

TEST(Bootstrap, MeanIsExactAndTheIntervalIsThatOfTheNormalLimit) {
  std::vector<double> values;
  Random random(3);
  for (int i = 0; i < 400; ++i) values.push_back(random.uniform());
  const Interval interval = bootstrap(values);
  EXPECT_DOUBLE_EQ(interval.mean, mean_of(values));
  const double half = 1.96 * std::sqrt(variance_of(values) / 400);
  EXPECT_NEAR(interval.low, interval.mean - half, 0.15 * half);
  EXPECT_NEAR(interval.high, interval.mean + half, 0.15 * half);
}

// Ten equal copies of each value say no more than one: only clusters count.
TEST(Bootstrap, DrawsWholeClusters) {
  std::vector<double> values;
  std::vector<double> copies;
  std::vector<int> cluster;
  Random random(4);
  for (int i = 0; i < 30; ++i) {
    values.push_back(random.uniform());
    for (int c = 0; c < 10; ++c) {
      copies.push_back(values.back());
      cluster.push_back(i);
    }
  }
  const Interval single = bootstrap(values);
  const Interval copied = bootstrap(copies, cluster);
  EXPECT_NEAR(copied.low, single.low, 1e-12);
  EXPECT_NEAR(copied.high, single.high, 1e-12);
}

TEST(Bootstrap, OneClusterHasNoInterval) {
  const std::vector<double> values = {1, 2, 3};
  const std::vector<int> cluster = {7, 7, 7};
  const Interval interval = bootstrap(values, cluster);
  EXPECT_EQ(interval.low, 2);
  EXPECT_EQ(interval.high, 2);
}

TEST(PairedBootstrap, SeesADifferenceThatIsSmallerThanTheSpread) {
  std::vector<double> a;
  std::vector<double> b;
  std::vector<int> cluster;
  Random random(5);
  for (int i = 0; i < 40; ++i) {
    b.push_back(100 * random.uniform());
    a.push_back(b.back() - 1 - 0.1 * random.uniform());
    cluster.push_back(i);
  }
  const Interval difference = paired_bootstrap(a, b, cluster);
  EXPECT_LT(difference.high, -0.9);
  EXPECT_GT(difference.low, -1.2);
}

TEST(Mean, OfNothingIsZero) {
  EXPECT_EQ(mean_of({}), 0);
  EXPECT_EQ(mean_of(std::vector<double>{1, 2, 6}), 3);
}

TEST(Quantile, IsTheNearestRank) {
  const std::vector<double> values = {4, 1, 3, 2};
  EXPECT_EQ(quantile_of(values, 0.5), 2);
  EXPECT_EQ(quantile_of(values, 0.51), 3);
  EXPECT_EQ(quantile_of(values, 1), 4);
  EXPECT_EQ(quantile_of(values, 0), 1);
  EXPECT_EQ(quantile_of({}, 0.5), 0);
}

TEST(Random, SamplesAreDifferentAndCoverTheRange) {
  Random random(6);
  const auto sample = random.sample(10, 10);
  std::vector<bool> seen(10);
  for (const std::size_t i : sample) {
    EXPECT_FALSE(seen[i]);
    seen[i] = true;
  }
}

TEST(Rounded, KeepsSignificantDigits) {
  EXPECT_EQ(rounded(123456, 3), 123000);
  EXPECT_EQ(rounded(0.000123456, 3), 0.000123);
  EXPECT_EQ(rounded(-2.5, 3), -2.5);
}

}  // namespace
}  // namespace tactic::eval
