// Every stage against the double-precision reference, on every instruction set, group size, head dim and centroid type.
#include <gtest/gtest.h>

#include <string>

#include "select/cases.h"

namespace tactic::test {
namespace {

struct Param {
  Isa isa;
  int group;
  int head_dim;
  bool int8;
};

std::vector<Param> params() {
  std::vector<Param> all;
  const int dims[] = {64, 80, 96, 128, 256};
  for (const Isa isa : supported_isas()) {
    for (int group = 1; group <= kMaxGroup; ++group) {
      for (const bool int8 : {true, false}) {
        for (const int dim : dims) all.push_back({isa, group, dim, int8});
      }
    }
  }
  return all;
}

class SelectConformance : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    const Param& p = GetParam();
    spec_.head_dim = p.head_dim;
    spec_.v_head_dim = p.head_dim;
    spec_.int8 = p.int8;
    spec_.clusters = {37, 50, 16};  // segments that end inside blocks
    spec_.seed = static_cast<std::uint64_t>(p.group * 1000 + p.head_dim);
    table_ = random_table(spec_);
    std::mt19937_64 random(spec_.seed + 1);
    std::normal_distribution<float> normal;
    q_.resize(static_cast<std::size_t>(2 * p.group * p.head_dim));
    for (float& x : q_) x = normal(random);
    query_.q = q_.data();
    query_.shape = {2 * p.group, 2, p.head_dim, p.head_dim};
    query_.params.scale = 1 / std::sqrt(static_cast<float>(p.head_dim));
    reference_.assign(static_cast<std::size_t>(p.group), 0.5f);
  }
  std::size_t at(int g, int c) const {
    return static_cast<std::size_t>(g) * static_cast<std::size_t>(table_.stride) + static_cast<std::size_t>(c);
  }

  ClusterSpec spec_;
  HeadTable table_;
  std::vector<float> q_;
  Query query_;
  std::vector<float> reference_;
};

TEST_P(SelectConformance, CentroidScoresMatchTheReference) {
  const Param& p = GetParam();
  const IsaScope scope(p.isa);
  for (const float softcap : {0.0f, 2.0f}) {
    query_.params.softcap = softcap;
    auto expected = matrix(table_, p.group);
    auto actual = matrix(table_, p.group);
    reference::score_centroids(query_, 1, table_, 0, table_.count, expected.data());
    score_centroids(query_, 1, table_, 0, 20, actual.data());  // 20 cuts a block
    score_centroids(query_, 1, table_, 20, table_.count, actual.data());
    // |c| <= 2 sqrt(d) for these centroids, |q| about sqrt(d): logit scale 2 sqrt(d); 16-bit q errs by 1e-5 of it, the softcap by
    // 3e-7 cap.
    const double bound = 2e-5 * 2 * std::sqrt(p.head_dim) + 1e-6;
    for (int g = 0; g < p.group; ++g) {
      for (int c = 0; c < table_.count; ++c) ASSERT_NEAR(actual[at(g, c)], expected[at(g, c)], bound) << g << " " << c;
    }
  }
}

TEST_P(SelectConformance, HalfVariancesMatchTheReference) {
  const Param& p = GetParam();
  const IsaScope scope(p.isa);
  std::vector<float> expected(static_cast<std::size_t>(p.group) * table_.parts.size(), NAN);
  std::vector<float> actual = expected;
  reference::half_variances(query_, 1, table_, expected.data());
  half_variances(query_, 1, table_, actual.data());
  // Every element of S is rounded to f16: by 2^-11 of itself, whatever the others cancel.
  const int dim = query_.shape.head_dim;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const HeadClusters& clusters = *table_.parts[i % table_.parts.size()].clusters;
    const float* q = query_.q + (static_cast<std::size_t>(p.group) + i / table_.parts.size()) * static_cast<std::size_t>(dim);
    double sum = 0;
    for (int row = 0; row < dim; ++row) {
      for (int column = 0; column < dim; ++column) {
        sum +=
            std::abs(static_cast<double>(q[row]) * q[column] * clusters.covariance[static_cast<std::size_t>(row * dim + column)]);
      }
    }
    const double scale = query_.params.scale;
    EXPECT_NEAR(actual[i], expected[i],
                0x1p-11 * scale * scale * sum / (2 * clusters.mean_spread) + 1e-5 * std::abs(expected[i]));
  }
}

TEST_P(SelectConformance, MassesMatchTheReference) {
  const Param& p = GetParam();
  const IsaScope scope(p.isa);
  auto logits = matrix(table_, p.group);
  reference::score_centroids(query_, 1, table_, 0, table_.count, logits.data());
  std::vector<float> h(static_cast<std::size_t>(p.group) * table_.parts.size());
  reference::half_variances(query_, 1, table_, h.data());
  for (const float softcap : {0.0f, 8.0f}) {
    for (const float* half : {static_cast<const float*>(nullptr), static_cast<const float*>(h.data())}) {
      auto expected = matrix(table_, p.group);
      auto actual = matrix(table_, p.group);
      reference::estimate_masses(table_, p.group, logits.data(), half, reference_.data(), expected.data(), softcap);
      estimate_masses(table_, p.group, logits.data(), half, reference_.data(), actual.data(), softcap);
      // exp errs by 3e-7; the exponent, at most 30 here, by a few roundings.
      for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-5f * expected[i]) << i;
    }
  }
}

TEST_P(SelectConformance, TailMatchesTheReference) {
  const Param& p = GetParam();
  const IsaScope scope(p.isa);
  auto logits = matrix(table_, p.group);
  reference::score_centroids(query_, 1, table_, 0, table_.count, logits.data());
  std::vector<float> h(static_cast<std::size_t>(p.group) * table_.parts.size());
  reference::half_variances(query_, 1, table_, h.data());
  std::vector<float> total(static_cast<std::size_t>(p.group), 3.0f);
  std::vector<std::uint8_t> chosen(static_cast<std::size_t>(table_.stride), 0);
  for (int c = 0; c < table_.count; c += 3) chosen[static_cast<std::size_t>(c)] = 1;
  for (std::size_t c = static_cast<std::size_t>(table_.count); c < chosen.size(); ++c) chosen[c] = 7;
  SelectScratch scratch;
  int dropped_by_price = 0;
  const std::vector<std::pair<int, float>> cases = {{1, 0.0f},  {20, 0.0f},   {1000, 0.0f}, {1000, 1e-2f},
                                                    {20, 1.0f}, {1000, 1.0f}, {1000, 1e2f}, {1000, 1e4f}};
  for (const auto& [limit, price] : cases) {
    std::vector<std::int32_t> list(static_cast<std::size_t>(table_.count));
    std::vector<std::int32_t> expected_list = list;
    std::vector<float> weights(static_cast<std::size_t>(p.group * limit), NAN);
    std::vector<float> expected = weights;
    const int n = reference::choose_tail(table_, p.group, logits.data(), h.data(), reference_.data(), total.data(), chosen.data(),
                                         limit, expected_list.data(), expected.data(), 0, price);
    ASSERT_EQ(choose_tail(table_, p.group, logits.data(), h.data(), reference_.data(), total.data(), chosen.data(), limit,
                          list.data(), weights.data(), scratch, 0, price),
              n);
    // Masses bound the weights: with their help the same are found.
    auto masses = matrix(table_, p.group);
    estimate_masses(table_, p.group, logits.data(), h.data(), reference_.data(), masses.data());
    const std::vector<std::int32_t> without(list.begin(), list.begin() + n);
    ASSERT_EQ(choose_tail(table_, p.group, logits.data(), h.data(), reference_.data(), total.data(), chosen.data(), limit,
                          list.data(), weights.data(), scratch, 0, price, masses.data()),
              n);
    ASSERT_EQ(std::vector<std::int32_t>(list.begin(), list.begin() + n), without);
    if (limit == 1000 && price == 0) dropped_by_price = n;
    if (limit == 1000 && price == 1e4f) dropped_by_price -= n;
    for (int i = 0; i < n; ++i) {
      ASSERT_EQ(list[static_cast<std::size_t>(i)], expected_list[static_cast<std::size_t>(i)]);
      for (int g = 0; g < p.group; ++g) {
        const auto place = static_cast<std::size_t>(g * limit + i);
        ASSERT_NEAR(weights[place], expected[place], 1e-5f * expected[place]);
      }
    }
    PartialStorage out(p.group, p.head_dim);
    std::fill(out.output.begin(), out.output.end(), 0.25f);
    std::fill(out.sum.begin(), out.sum.end(), 1.0f);
    PartialStorage wanted = out;
    const std::span<const std::int32_t> tail(expected_list.data(), static_cast<std::size_t>(n));
    reference::add_tail(table_, p.group, p.head_dim, tail, expected.data(), limit, wanted.get());
    add_tail(table_, p.group, p.head_dim, tail, expected.data(), limit, out.get());
    // |mean V| <= 1, so rounding is below n 2^-24 of the sum of the weights, which is in wanted.sum.
    for (int g = 0; g < p.group; ++g) {
      const float bound = static_cast<float>(n + 4) * 1.2e-7f * wanted.sum[static_cast<std::size_t>(g)];
      ASSERT_NEAR(out.sum[static_cast<std::size_t>(g)], wanted.sum[static_cast<std::size_t>(g)], bound);
      for (int i = 0; i < p.head_dim; ++i) {
        const auto place = static_cast<std::size_t>(g * p.head_dim + i);
        ASSERT_NEAR(out.output[place], wanted.output[place], bound);
      }
    }
  }
  EXPECT_GT(dropped_by_price, 0);
}

INSTANTIATE_TEST_SUITE_P(All, SelectConformance, ::testing::ValuesIn(params()), [](const auto& param_info) {
  const Param& p = param_info.param;
  return std::string(name_of(p.isa)) + "_group" + std::to_string(p.group) + "_dim" + std::to_string(p.head_dim) +
         (p.int8 ? "_int8" : "_f16");
});

}  // namespace
}  // namespace tactic::test
