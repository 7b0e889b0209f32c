// Choice by expected loss: hand-worked cases, the statistics behind the ripple, conformance with the reference.
#include "select/loss.h"

#include <gtest/gtest.h>

#include <set>

#include "select/cases.h"

namespace tactic::test {
namespace {

class Loss : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override { scope_ = std::make_unique<IsaScope>(GetParam()); }
  std::unique_ptr<IsaScope> scope_;
};
INSTANTIATE_TEST_SUITE_P(Isas, Loss, ::testing::ValuesIn(supported_isas()), [](const auto& p) { return name_of(p.param); });

// Rows of one head each; 0 in the padding, as estimate_masses leaves it.
std::vector<float> rows(const HeadTable& table, const std::vector<std::vector<float>>& values) {
  std::vector<float> matrix(values.size() * static_cast<std::size_t>(table.stride), 0.0f);
  for (std::size_t g = 0; g < values.size(); ++g) {
    std::copy(values[g].begin(), values[g].end(), matrix.begin() + static_cast<std::ptrdiff_t>(g) * table.stride);
  }
  return matrix;
}

struct Outcome {
  std::vector<std::uint8_t> chosen;
  std::set<std::int32_t> list;
  std::vector<float> covered;
};

Outcome choose(const HeadTable& table, int group, const std::vector<float>& mass, const std::vector<float>& ripple,
               const std::vector<float>& fixed, float price, const std::vector<int>& start = {}, bool reference = false) {
  Outcome out;
  out.chosen.assign(static_cast<std::size_t>(table.stride), 0);
  for (const int c : start) out.chosen[static_cast<std::size_t>(c)] = 1;
  out.covered.assign(static_cast<std::size_t>(group), NAN);
  std::vector<std::int32_t> list(static_cast<std::size_t>(table.count));
  const auto function = reference ? reference::choose_by_loss : choose_by_loss;
  const int n =
      function(table, group, mass.data(), ripple.data(), fixed.data(), price, out.chosen.data(), list.data(), out.covered.data());
  out.list.insert(list.begin(), list.begin() + n);
  return out;
}

TEST_P(Loss, TakesWhatLosesMoreThanItsRowsAreWorth) {
  // total 100: shares .5, .2, .2, .1; ripple 1, 1, .01, 1 -> losses .25, .04, .0004, .01; price .005 a row
  const HeadTable table = table_of_sizes({4, 4, 4, 4});
  const auto mass = rows(table, {{50, 20, 20, 10}});
  const auto ripple = rows(table, {{1, 1, .01f, 1}});
  const Outcome out = choose(table, 1, mass, ripple, {0}, .005f);
  EXPECT_EQ(out.list, (std::set<std::int32_t>{0, 1}));  // rows cost .02: .25 and .04 are worth it
  EXPECT_NEAR(out.covered[0], .7f, 1e-6);
}

TEST_P(Loss, LossesOfTheGroupAdd) {
  // alone each head loses .01 < .015; together .02 > .015
  const HeadTable table = table_of_sizes({3, 3});
  const auto mass = rows(table, {{10, 1}, {10, 1}});
  const auto ripple = rows(table, {{1, 1}, {1, 1}});
  EXPECT_EQ(choose(table, 2, mass, ripple, {89, 89}, .005f).list, (std::set<std::int32_t>{0}));
  EXPECT_TRUE(choose(table, 1, rows(table, {{10, 1}}), rows(table, {{1, 1}}), {89}, .005f).list.empty());
}

TEST_P(Loss, OnlyAdds) {
  const HeadTable table = table_of_sizes({1, 1, 1});
  const auto mass = rows(table, {{10, 10, 1e-6f}});
  const auto ripple = rows(table, {{1, 1, 1}});
  const Outcome out = choose(table, 1, mass, ripple, {0}, .01f, {0, 2});
  EXPECT_EQ(out.list, (std::set<std::int32_t>{1}));
  EXPECT_EQ(out.chosen[0] + out.chosen[1] + out.chosen[2], 3);
  EXPECT_NEAR(out.covered[0], 1.0f, 1e-6);
}

TEST_P(Loss, WritesNoMoreThanTheUnchosen) {
  const HeadTable table = table_of_sizes({1, 1, 1, 1});
  const auto mass = rows(table, {{10, 10, 10, 10}});
  const auto ripple = rows(table, {{1, 1, 1, 1}});
  const float fixed = 0;
  float covered = 0;
  std::vector<std::uint8_t> chosen(static_cast<std::size_t>(table.stride), 0);
  chosen[0] = chosen[1] = chosen[3] = 1;
  std::vector<std::int32_t> list{-1, -7};  // room for one
  ASSERT_EQ(choose_by_loss(table, 1, mass.data(), ripple.data(), &fixed, .01f, chosen.data(), list.data(), &covered), 1);
  EXPECT_EQ(list, (std::vector<std::int32_t>{2, -7}));
}

TEST_P(Loss, AnUnsoundTotalTakesEveryCluster) {
  const HeadTable table = table_of_sizes({1, 2, 3});
  for (const float bad : {NAN, INFINITY}) {
    const Outcome out = choose(table, 1, rows(table, {{1, bad, 1}}), rows(table, {{1, 1, 1}}), {0}, .01f);
    EXPECT_EQ(out.list.size(), 3u);
    EXPECT_EQ(out.covered[0], 1.0f);
  }
}

TEST_P(Loss, ALowerPriceTakesMore) {
  const HeadTable table = random_table({.clusters = {300, 77}});
  std::vector<float> mass = random_masses(table, 4, 3);
  for (float& m : mass) m = std::isnan(m) ? 0.0f : m;
  const std::vector<float> ripple(mass.size(), 0.3f);
  const std::vector<float> fixed(4, 1.0f);
  std::size_t before = 0;
  for (const float price : {1e-4f, 1e-6f, 1e-8f, 1e-10f}) {
    const Outcome now = choose(table, 4, mass, ripple, fixed, price);
    EXPECT_GT(now.list.size(), before) << price;
    before = now.list.size();
  }
}

TEST_P(Loss, ConformsToTheReference) {
  for (const int group : {1, 3, 7, 16}) {
    const HeadTable table = random_table({.clusters = {211, 19}, .seed = static_cast<std::uint64_t>(group)});
    std::vector<float> mass = random_masses(table, group, 5);
    for (float& m : mass) m = std::isnan(m) ? 0.0f : m;
    std::vector<float> logits(mass.size(), 0.5f);
    std::vector<float> h(static_cast<std::size_t>(group) * table.parts.size());
    for (std::size_t i = 0; i < h.size(); ++i) h[i] = 0.2f * static_cast<float>(i % 9);
    for (const float softcap : {0.0f, 2.0f}) {
      std::vector<float> ripple(mass.size(), NAN);
      std::vector<float> expected(mass.size(), NAN);
      representation_ripple(table, group, logits.data(), h.data(), ripple.data(), softcap);
      reference::representation_ripple(table, group, logits.data(), h.data(), expected.data(), softcap);
      for (std::size_t i = 0; i < ripple.size(); ++i) ASSERT_NEAR(ripple[i], expected[i], 1e-5f * expected[i] + 1e-6f) << i;
      const std::vector<float> fixed(static_cast<std::size_t>(group), 10.0f);
      // A price no loss is near, so that rounding decides nothing.
      const float price = 1.2345e-7f;
      const Outcome ours = choose(table, group, mass, expected, fixed, price);
      const Outcome oracle = choose(table, group, mass, expected, fixed, price, {}, true);
      EXPECT_EQ(ours.list, oracle.list);
      for (int g = 0; g < group; ++g)
        EXPECT_NEAR(ours.covered[static_cast<std::size_t>(g)], oracle.covered[static_cast<std::size_t>(g)], 1e-5);
    }
  }
}

TEST_P(Loss, WithoutSpreadsRepresentingLosesAll) {
  const HeadTable table = random_table({.clusters = {20}});
  std::vector<float> ripple(static_cast<std::size_t>(table.stride), NAN);
  representation_ripple(table, 1, ripple.data(), nullptr, ripple.data(), 0);
  for (int c = 0; c < table.stride; ++c) EXPECT_EQ(ripple[static_cast<std::size_t>(c)], c < table.count ? 1.0f : 0.0f);
}

// What the formula claims: for n weights exp(s x), x normal, and values of unit variance independent of them, the mean squared
// error of sum w v against mean(w) sum v, over (sum w)^2, is near (exp(s^2) - 1) / n.
TEST(LossLaw, RippleIsTheScatterOfWeights) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  const int n = 32;
  for (const double s : {0.2, 0.5, 0.9}) {
    double error = 0;
    double mass = 0;
    for (int trial = 0; trial < 20000; ++trial) {
      double difference = 0;
      double total = 0;
      for (int i = 0; i < n; ++i) {
        const double w = std::exp(s * normal(random));
        difference += (w - std::exp(s * s / 2)) * normal(random);
        total += w;
      }
      error += difference * difference;
      mass += total * total;
    }
    // the mean of (sum w)^2 is above the square of the mean by (exp(s^2) - 1) / n; sampling adds about 2%
    const double law = std::expm1(s * s) / n;
    EXPECT_NEAR(error / mass, law / (1 + law), 0.06 * law) << s;
  }
}

TEST_P(Loss, TheTailHoldsWhatIsWorthItsMeanValue) {
  // price .01: a mean V costs .0027, a quarter of it counts: the squares of the shares must sum to more than .000675
  const HeadTable table = table_of_sizes({1, 1, 1});
  const std::vector<float> logits = rows(table, {{std::log(3.0f), 0, std::log(2.0f)}, {0, std::log(2.0f), std::log(2.0f)}});
  const float reference[] = {0, 0};
  const float total[] = {100, 100};  // squares .001, .0005, .0008
  const std::vector<std::uint8_t> chosen(static_cast<std::size_t>(table.stride), 0);
  std::vector<std::int32_t> list(3);
  std::vector<float> weights(6);
  SelectScratch scratch;
  ASSERT_EQ(choose_tail(table, 2, logits.data(), nullptr, reference, total, chosen.data(), 3, list.data(), weights.data(),
                        scratch, 0, .01f),
            2);
  EXPECT_EQ(list[0], 0);
  EXPECT_EQ(list[1], 2);
  EXPECT_NEAR(weights[1], 2, 1e-5);
  EXPECT_NEAR(weights[4], 2, 1e-5);
}

TEST(LossPrice, FallsWithTheMassAndVanishesAtOne) {
  EXPECT_GT(loss_per_row(.5f), loss_per_row(.9f));
  EXPECT_GT(loss_per_row(.9f), loss_per_row(.99f));
  EXPECT_EQ(loss_per_row(1.0f), 0.0f);
}

}  // namespace
}  // namespace tactic::test
