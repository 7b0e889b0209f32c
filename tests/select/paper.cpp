// Algorithm 1 of the paper: against the reference, and on weights that follow a / x + b exactly.
#include <gtest/gtest.h>

#include <bit>
#include <numeric>

#include "select/cases.h"
#include "select/paper_fit.h"

namespace tactic::test {
namespace {

struct PaperRun {
  std::vector<std::uint64_t> bitmap;
  std::vector<std::int64_t> budget;
  std::vector<float> estimated;
  PaperReport report;
};

template <bool Reference>
PaperRun run(const KvCase& kv, const HeadTable& table, const std::vector<float>& logits, const Options& options, float fixed) {
  const int group = kv.spec().shape.group();
  const auto heads = static_cast<std::size_t>(group);
  PaperRun out{std::vector<std::uint64_t>(static_cast<std::size_t>((kv.spec().tokens + 63) / 64)),
               std::vector<std::int64_t>(heads),
               std::vector<float>(heads),
               {}};
  const std::vector<float> fix(heads, fixed);
  const std::vector<float> reference(heads, 1.0f);
  if constexpr (Reference) {
    reference::choose_paper(kv.query(), kv.view(), 0, table, logits.data(), fix.data(), reference.data(), options,
                            out.bitmap.data(), out.budget.data(), out.estimated.data(), &out.report);
  } else {
    SelectScratch scratch;
    choose_paper(kv.query(), kv.view(), 0, table, logits.data(), fix.data(), reference.data(), options, out.bitmap.data(),
                 out.budget.data(), out.estimated.data(), &out.report, scratch);
  }
  return out;
}

TEST(Paper, ChoosesWhatTheReferenceChooses) {
  std::mt19937_64 random(3);
  for (const int group : {1, 3}) {
    for (const int count : {1, 3, 40, 200}) {
      for (const float softcap : {0.0f, 3.0f}) {
        ClusterSpec spec;
        spec.clusters = {count, count / 2 + 1};
        spec.seed = random();
        const HeadTable table = random_table(spec);
        KvSpec cache;
        cache.shape = {group, 1, 64, 64};
        cache.tokens = spec.first + table.token_count + 7;
        cache.seed = random();
        KvCase kv(cache);
        kv.params().softcap = softcap;
        auto logits = matrix(table, group);
        score_centroids(kv.query(), 0, table, 0, table.count, logits.data());
        for (const float p : {0.1f, 0.75f, 0.9f, 0.99f}) {
          Options options = paper_options();
          options.mass = p;
          const PaperRun expected = run<true>(kv, table, logits, options, 0.5f);
          const PaperRun actual = run<false>(kv, table, logits, options, 0.5f);
          EXPECT_EQ(actual.budget, expected.budget) << group << " " << count << " " << p;
          EXPECT_EQ(actual.bitmap, expected.bitmap);
          EXPECT_EQ(actual.report.sampled, expected.report.sampled);
          for (std::size_t g = 0; g < expected.estimated.size(); ++g)
            EXPECT_NEAR(actual.estimated[g], expected.estimated[g], 1e-6);
        }
      }
    }
  }
}

// n clusters of one token; token x's key makes its weight a / x + b, and logits put token x at place x.
TEST(Paper, RecoversTheBudgetOfWeightsThatFollowTheCurve) {
  constexpr int kTokens = 4000;
  const HeadTable table = table_of_sizes(std::vector<int>(kTokens, 1));
  for (const auto& [a, b] : {std::pair{2.0, 0.001}, std::pair{5.0, 0.0}, std::pair{1.0, 0.01}}) {
    KvSpec cache;
    cache.shape = {1, 1, 64, 64};
    cache.tokens = kTokens;
    cache.k_type = DType::f32;
    KvCase kv(cache);
    std::fill(kv.q().begin(), kv.q().end(), 0.0f);
    kv.q()[0] = 1;
    kv.params().scale = 1;
    std::vector<double> weight;
    auto logits = matrix(table, 1);
    for (int x = 1; x <= kTokens; ++x) {
      weight.push_back(a / x + b);
      std::vector<float> key(64, 0.0f);
      key[0] = static_cast<float>(std::log(weight.back()) + 1);  // the tests' reference is 1
      kv.set_k(x - 1, 0, key);
      logits[static_cast<std::size_t>(x - 1)] = static_cast<float>(-x);
    }
    for (const float p : {0.5f, 0.9f}) {
      Options options = paper_options();
      options.mass = p;
      options.fit_window = 0.004f;  // 16 tokens: the mean of 1 / x over them differs from 1 / 400 by 16^2 / 12 / 400^2 = 1.3e-4
      const PaperRun actual = run<false>(kv, table, logits, options, 0.0f);
      const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
      double sum = 0;
      std::int64_t k = 0;
      while (sum < static_cast<double>(p) * total) sum += weight[static_cast<std::size_t>(k++)];
      EXPECT_NEAR(static_cast<double>(actual.budget[0]), static_cast<double>(k), 1 + 0.005 * static_cast<double>(k))
          << a << " " << b << " " << p;
      EXPECT_NEAR(actual.estimated[0], p, 1e-3);
    }
  }
}

TEST(Paper, FitGoesThroughItsTwoPoints) {
  const Fit fit = fit_curve(100, 3.0 / 100 + 0.5, 600, 3.0 / 600 + 0.5);
  EXPECT_NEAR(fit.a, 3, 1e-12);
  EXPECT_NEAR(fit.b, 0.5, 1e-14);
}

TEST(Paper, PlacesOfTheSamplesAreThePapers) {
  const FitPlaces p = fit_places(7400, paper_options());
  EXPECT_EQ(p.head, 148);
  EXPECT_EQ(p.first_begin, 740 - 37);
  EXPECT_EQ(p.first_end, 740 + 37);
  EXPECT_EQ(p.second_begin, 4440 - 37);
  EXPECT_EQ(fit_places(10, paper_options()).head, 10);
}

TEST(Paper, MassOnFixedTokensTakesNone) {
  ClusterSpec spec;
  const HeadTable table = random_table(spec);
  KvSpec cache;
  cache.shape = {1, 1, 64, 64};
  cache.tokens = spec.first + table.token_count;
  const KvCase kv(cache);
  auto logits = matrix(table, 1);
  score_centroids(kv.query(), 0, table, 0, table.count, logits.data());
  const PaperRun actual = run<false>(kv, table, logits, paper_options(), 1e12f);
  EXPECT_EQ(actual.budget[0], 0);
  EXPECT_EQ(actual.bitmap, std::vector<std::uint64_t>(actual.bitmap.size(), 0));
}

}  // namespace
}  // namespace tactic::test
