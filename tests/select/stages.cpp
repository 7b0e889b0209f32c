// Hand-worked and statistical properties of single stages; a warm step allocates nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

#include "select/cases.h"

namespace {
std::atomic<long> allocations{0};
}
// noinline: else the compiler pairs these with malloc and free itself and warns.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t align) {
  ++allocations;
  const auto a = static_cast<std::size_t>(align);
  if (void* p = std::aligned_alloc(a, (size + a - 1) / a * a)) return p;
  throw std::bad_alloc();
}
// std::stable_sort's buffer; AddressSanitizer's own would not match our delete.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace tactic::test {
namespace {

class Stage : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override { scope_ = std::make_unique<IsaScope>(GetParam()); }
  std::unique_ptr<IsaScope> scope_;
};

TEST(Table, JoinsSegments) {
  ClusterSpec spec;
  spec.clusters = {20, 30};
  const HeadTable table = random_table(spec);
  EXPECT_EQ(table.count, 50);
  EXPECT_EQ(table.stride, 64);
  EXPECT_EQ(table.parts[1].first, 20);
  EXPECT_EQ(table.part_of[19], 0);
  EXPECT_EQ(table.part_of[20], 1);
  EXPECT_EQ(table.size[50], 0.0f);
  std::vector<int> seen(static_cast<std::size_t>(table.token_count), 0);
  for (int c = 0; c < table.count; ++c) {
    for (const std::int32_t t : table.tokens[static_cast<std::size_t>(c)]) {
      ++seen[static_cast<std::size_t>(t - table.first_token)];
      EXPECT_EQ(table.column_of[static_cast<std::size_t>(t - table.first_token)], c);
    }
  }
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST(Table, MixedCentroidTypesScoreLikeTheReference) {
  std::mt19937_64 random(1);
  ClusterSpec spec;
  const auto eight = random_segment(spec, 20, 0, random);
  spec.int8 = false;
  const std::vector<std::shared_ptr<const Segment>> segments{eight, random_segment(spec, 20, eight->last, random)};
  const HeadTable table = make_table(segments, 0);
  std::vector<float> q(64);
  std::normal_distribution<float> normal;
  for (float& x : q) x = normal(random);
  const Query query{q.data(), {1, 1, 64, 64}, {0.125f, 0, nullptr}};
  auto expected = matrix(table, 1);
  auto actual = matrix(table, 1);
  reference::score_centroids(query, 0, table, 0, 40, expected.data());
  score_centroids(query, 0, table, 0, 40, actual.data());
  for (std::size_t c = 0; c < 40; ++c) EXPECT_NEAR(actual[c], expected[c], 16 * 0x1p-11);  // |q| |c| scale <= 16, f16 rounding
}

TEST_P(Stage, QueryThatIsNotFiniteGivesNaNInItsHeadOnly) {
  for (const bool int8 : {true, false}) {
    ClusterSpec spec;
    spec.int8 = int8;
    const HeadTable table = random_table(spec);
    std::vector<float> q(128, 1.0f);
    q[3] = std::numeric_limits<float>::infinity();
    q[5] = NAN;
    const Query query{q.data(), {2, 1, 64, 64}, {0.125f, 0, nullptr}};
    auto logits = matrix(table, 2);
    score_centroids(query, 0, table, 0, table.count, logits.data());
    EXPECT_TRUE(std::isnan(logits[0]));
    EXPECT_TRUE(std::isfinite(logits[static_cast<std::size_t>(table.stride)]));
    const float reference[2] = {0, 0};
    auto mass = matrix(table, 2);
    estimate_masses(table, 2, logits.data(), nullptr, reference, mass.data());
    EXPECT_TRUE(std::isnan(mass[0]));
    EXPECT_EQ(mass[static_cast<std::size_t>(table.count)], 0.0f);  // padding
  }
}

TEST_P(Stage, ExponentIsCutAtSixty) {
  const HeadTable table = table_of_sizes({2});
  auto logits = matrix(table, 1);
  logits[0] = 500;
  const float reference = 0;
  auto mass = matrix(table, 1);
  estimate_masses(table, 1, logits.data(), nullptr, &reference, mass.data());
  EXPECT_NEAR(mass[0] / (2 * std::exp(60.0)), 1, 1e-5);
  logits[0] = -500;
  estimate_masses(table, 1, logits.data(), nullptr, &reference, mass.data());
  EXPECT_EQ(mass[0], 0.0f);
}

// Keys of a cluster drawn from a normal law: the log-normal mean is the expected mass.
TEST_P(Stage, EstimateIsTheMeanMassOfANormalCluster) {
  constexpr int kSize = 20000;
  std::mt19937_64 random(11);
  std::normal_distribution<double> normal;
  const double half = 0.5;  // half the variance of the logits
  double exact = 0;
  for (int i = 0; i < kSize; ++i) exact += std::exp(0.3 + std::sqrt(2 * half) * normal(random));
  const HeadTable table = table_of_sizes({kSize});  // spread 1
  auto logits = matrix(table, 1);
  logits[0] = 0.3f;
  const float h = 0.5f;
  const float reference = 0;
  auto mass = matrix(table, 1);
  estimate_masses(table, 1, logits.data(), &h, &reference, mass.data());
  // exp of a normal of variance 1 has relative deviation sqrt(e - 1) = 1.31; 5 deviations of the mean of 20000.
  EXPECT_NEAR(mass[0] / exact, 1, 5 * 1.31 / std::sqrt(kSize));
}

TEST_P(Stage, FactorJudgesTheFaintestTenth) {
  const HeadTable table = table_of_sizes({1, 1, 1, 1, 1});
  SelectScratch scratch;
  std::vector<float> mass = matrix(table, 1);
  std::vector<float> exact = matrix(table, 1);
  const float estimates[] = {50, 30, 4, 3, 13};
  const float truths[] = {50, 30, 6, 8, 13};
  std::copy(estimates, estimates + 5, mass.begin());
  std::copy(truths, truths + 5, exact.begin());
  const std::vector<std::int32_t> chosen{0, 1, 2, 3, 4};
  float factor = 0;
  tail_factors(table, 1, mass.data(), exact.data(), chosen, &factor, scratch);
  EXPECT_FLOAT_EQ(factor, 2.0f);  // clusters 3 and 2 hold 7 of 100; with 4 it would be 20: 14 / 7
  exact[3] = 100;
  tail_factors(table, 1, mass.data(), exact.data(), chosen, &factor, scratch);
  EXPECT_FLOAT_EQ(factor, 4.0f);
  exact[3] = exact[2] = 0;
  tail_factors(table, 1, mass.data(), exact.data(), chosen, &factor, scratch);
  EXPECT_FLOAT_EQ(factor, 1.0f);
  tail_factors(table, 1, mass.data(), exact.data(), {}, &factor, scratch);
  EXPECT_FLOAT_EQ(factor, 1.0f);
}

TEST_P(Stage, FactorsMatchTheReference) {
  ClusterSpec spec;
  spec.clusters = {500};
  const HeadTable table = random_table(spec);
  SelectScratch scratch;
  const auto mass = random_masses(table, 5, 1, 1.0f);
  auto exact = random_masses(table, 5, 1, 1.0f);
  std::mt19937_64 random(2);
  std::uniform_real_distribution<float> times(0.5f, 4.0f);
  for (float& x : exact) x *= times(random);
  std::vector<std::int32_t> chosen;
  for (int c = 0; c < table.count; c += 2) chosen.push_back(c);
  float expected[5];
  float actual[5];
  reference::tail_factors(table, 5, mass.data(), exact.data(), chosen, expected);
  tail_factors(table, 5, mass.data(), exact.data(), chosen, actual, scratch);
  for (int g = 0; g < 5; ++g) EXPECT_NEAR(actual[g], expected[g], 1e-5);
}

TEST(Tokens, ComeBackAscendingAndTheBitmapEmpty) {
  ClusterSpec spec;
  spec.first = 61;
  const HeadTable table = random_table(spec);
  std::vector<std::uint64_t> bitmap(static_cast<std::size_t>(spec.first + table.token_count) / 64 + 1, 0);
  const std::vector<std::int32_t> clusters{3, 50, 7};
  mark_tokens(table, clusters, bitmap.data());
  std::vector<std::int32_t> expected;
  for (const std::int32_t c : clusters) {
    const auto& tokens = table.tokens[static_cast<std::size_t>(c)];
    expected.insert(expected.end(), tokens.begin(), tokens.end());
  }
  std::sort(expected.begin(), expected.end());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(table.token_count));
  ids.resize(static_cast<std::size_t>(take_tokens(bitmap.data(), static_cast<std::int64_t>(bitmap.size()), ids.data())));
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(bitmap, std::vector<std::uint64_t>(bitmap.size(), 0));
  std::vector<std::uint64_t> full(3, ~std::uint64_t{0});
  ids.resize(192);
  ASSERT_EQ(take_tokens(full.data(), 3, ids.data()), 192);
  EXPECT_EQ(ids[191], 191);
}

TEST_P(Stage, ExactMassesAreSumsOverTheListedTokensOfACluster) {
  ClusterSpec spec;
  spec.clusters = {40, 24};
  const HeadTable table = random_table(spec);
  constexpr int kGroup = 3;
  const std::vector<std::int32_t> clusters{50, 3, 41, 7};
  std::vector<std::int32_t> ids(static_cast<std::size_t>(table.token_count));
  const auto count = list_tokens(table, clusters, ids.data());
  const std::int64_t stride = table.token_count;
  std::vector<float> logits(static_cast<std::size_t>(kGroup * stride), NAN);
  const float reference[kGroup] = {0.5f, -3, 20};
  // The logit of a token follows from its number; the last head has tokens 100 above its reference.
  const auto logit = [](int g, std::int32_t token) { return static_cast<float>(token % 11) - 4 + (g == 2 ? 117.0f : 0.0f); };
  for (int g = 0; g < kGroup; ++g) {
    for (std::int64_t i = 0; i < count; ++i) {
      logits[static_cast<std::size_t>(g * stride + i)] = logit(g, ids[static_cast<std::size_t>(i)]);
    }
  }
  auto exact = matrix(table, kGroup);
  sum_exact_masses(table, kGroup, logits.data(), stride, reference, clusters, exact.data());
  for (const std::int32_t c : clusters) {
    for (int g = 0; g < kGroup; ++g) {
      double expected = 0;
      for (const std::int32_t token : table.tokens[static_cast<std::size_t>(c)]) {
        expected += std::exp(std::min(static_cast<double>(logit(g, token)) - static_cast<double>(reference[g]), 80.0));
      }
      const float sum = exact[static_cast<std::size_t>(g * table.stride + c)];
      EXPECT_NEAR(sum / expected, 1, 1e-5);  // exponents up to 80 in f32: 80 * 2^-24 relative
    }
  }
}

TEST(Tokens, AreListedClusterByCluster) {
  ClusterSpec spec;
  spec.first = 61;
  const HeadTable table = random_table(spec);
  std::vector<std::int32_t> clusters{50, 3};
  for (int c = 10; c < 40; ++c) clusters.push_back(c);  // more than are asked for ahead
  std::vector<std::int32_t> expected;
  for (const std::int32_t c : clusters) {
    const auto& tokens = table.tokens[static_cast<std::size_t>(c)];
    expected.insert(expected.end(), tokens.begin(), tokens.end());
  }
  std::vector<std::int32_t> ids(static_cast<std::size_t>(table.token_count));
  ids.resize(static_cast<std::size_t>(list_tokens(table, clusters, ids.data())));
  EXPECT_EQ(ids, expected);
}

TEST_P(Stage, WarmStepAllocatesNothing) {
  ClusterSpec spec;
  spec.clusters = {300, 100};
  const HeadTable table = random_table(spec);
  constexpr int kGroup = 3;
  KvSpec cache;
  cache.shape = {kGroup, 1, 64, 64};
  cache.tokens = spec.first + table.token_count;
  const KvCase kv(cache);
  auto logits = matrix(table, kGroup);
  auto mass = matrix(table, kGroup);
  std::vector<float> h(kGroup * table.parts.size());
  const std::vector<float> fixed(kGroup, 1.0f);
  const std::vector<float> target(kGroup, 0.8f);
  const std::vector<float> reference(kGroup, 0.0f);
  const std::vector<float> total(kGroup, 100.0f);
  std::vector<std::uint8_t> chosen(static_cast<std::size_t>(table.stride));
  std::vector<std::int32_t> list(static_cast<std::size_t>(table.count));
  std::vector<float> weights(kGroup * 128);
  std::vector<float> factor(kGroup);
  std::vector<std::uint64_t> bitmap(static_cast<std::size_t>(cache.tokens) / 64 + 1, 0);
  std::vector<std::int64_t> budget(kGroup);
  SelectScratch scratch;
  const Options options = paper_options();
  const auto step = [&] {
    score_centroids(kv.query(), 0, table, 0, table.count, logits.data());
    half_variances(kv.query(), 0, table, h.data());
    estimate_masses(table, kGroup, logits.data(), h.data(), reference.data(), mass.data());
    std::fill(chosen.begin(), chosen.end(), std::uint8_t{0});
    const int n =
        choose(table, kGroup, mass.data(), fixed.data(), target.data(), true, chosen.data(), list.data(), factor.data(), scratch);
    tail_factors(table, kGroup, mass.data(), mass.data(), {list.data(), static_cast<std::size_t>(n)}, factor.data(), scratch);
    choose_tail(table, kGroup, logits.data(), h.data(), reference.data(), total.data(), chosen.data(), 128, list.data(),
                weights.data(), scratch);
    choose_paper(kv.query(), kv.view(), 0, table, logits.data(), fixed.data(), reference.data(), options, bitmap.data(),
                 budget.data(), factor.data(), nullptr, scratch);
  };
  step();
  const long before = allocations;
  step();
  EXPECT_EQ(allocations - before, 0);
}

INSTANTIATE_TEST_SUITE_P(Isas, Stage, ::testing::ValuesIn(supported_isas()),
                         [](const auto& param_info) { return std::string(name_of(param_info.param)); });

}  // namespace
}  // namespace tactic::test
