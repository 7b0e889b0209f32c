// What attention must obey whatever the numbers: poison stays where it is, order and cuts do not matter, the paper's bound.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attend/attend.h"
#include "support/kv.h"

namespace tactic::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<std::int32_t> all_tokens(const KvCase& kv) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(kv.spec().tokens));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

TokenList list_of(const std::vector<std::int32_t>& ids) { return {ids.data(), 0, static_cast<std::int64_t>(ids.size())}; }

// Normalised output of attend_list.
std::vector<float> attend(const KvCase& kv, int head, const TokenList& list, float* lse = nullptr) {
  const Shape& shape = kv.spec().shape;
  PartialStorage part(shape.group(), shape.v_head_dim);
  std::vector<float> out(part.output.size());
  attend_list(kv.query(), kv.view(), head, list, part.get(), nullptr, 0);
  normalise(part.get(), part.heads, part.dim, nullptr, out.data(), lse);
  return out;
}

bool all_nan(const float* x, int count) {
  return std::all_of(x, x + count, [](float v) { return std::isnan(v); });
}
bool all_finite(const float* x, int count) {
  return std::all_of(x, x + count, [](float v) { return std::isfinite(v); });
}

class Property : public testing::TestWithParam<Isa> {
 protected:
  IsaScope isa_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, Property, testing::ValuesIn(supported_isas()),
                         [](const auto& isa) { return std::string(tactic::name_of(isa.param)); });

TEST_P(Property, a_broken_key_breaks_its_own_heads_only) {
  for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
    for (const float bad : {NAN, kInfinity, -kInfinity}) {
      for (const float softcap : {0.0f, 20.0f}) {
        for (const std::int64_t where : {0, 63, 64, 129}) {
          KvCase kv({{6, 3, 64, 80}, type, DType::f16, 130});
          kv.params().softcap = softcap;
          std::vector<float> key = kv.k(where, 1);
          key[37] = bad;
          kv.set_k(where, 1, key);
          PartialStorage part(6, 80);
          std::vector<float> out(6 * 80), lse(6);
          attend_all(kv.query(), kv.view(), {nullptr, 0, 130}, part.get());
          normalise(part.get(), 6, 80, nullptr, out.data(), lse.data());
          for (int h = 0; h < 6; ++h) {
            const bool broken = h / 2 == 1;
            ASSERT_EQ(all_nan(&out[static_cast<std::size_t>(h) * 80], 80), broken) << "head " << h << ", token " << where;
            ASSERT_EQ(all_finite(&out[static_cast<std::size_t>(h) * 80], 80), !broken) << "head " << h << ", token " << where;
            ASSERT_EQ(std::isnan(lse[static_cast<std::size_t>(h)]), broken);
          }
        }
      }
    }
  }
}

TEST_P(Property, a_broken_head_stays_broken_through_merge) {
  KvCase kv({{2, 1, 64, 64}, DType::f16, DType::f16, 80});
  kv.set_k(5, 0, std::vector<float>(64, NAN));
  PartialStorage bad(2, 64), good(2, 64), into(2, 64);
  attend_list(kv.query(), kv.view(), 0, {nullptr, 0, 40}, bad.get(), nullptr, 0);
  attend_list(kv.query(), kv.view(), 0, {nullptr, 40, 40}, good.get(), nullptr, 0);
  std::vector<float> out(128);
  for (const bool bad_first : {false, true}) {
    into = bad_first ? bad : good;
    PartialStorage other = bad_first ? good : bad;
    merge(into.get(), other.get(), 2, 64);
    normalise(into.get(), 2, 64, nullptr, out.data(), nullptr);
    EXPECT_TRUE(all_nan(out.data(), 128)) << bad_first;
  }
}

TEST_P(Property, a_broken_row_that_is_not_listed_does_not_matter) {
  KvCase kv({{4, 2, 64, 64}, DType::f16, DType::f16, 90});
  std::vector<std::int32_t> ids = all_tokens(kv);
  const std::vector<float> nan(64, NAN);
  for (const std::int32_t t : {0, 33, 60, 89}) {
    kv.set_k(t, 0, nan);
    kv.set_v(t, 0, nan);
    std::erase(ids, t);
  }
  const std::vector<float> out = attend(kv, 0, list_of(ids));
  EXPECT_TRUE(all_finite(out.data(), 128));
}

TEST_P(Property, nothing_attended_is_the_empty_sum) {
  KvCase kv({{4, 2, 64, 64}, DType::f16, DType::f16, 10});
  PartialStorage part(4, 64);
  attend_all(kv.query(), kv.view(), {nullptr, 3, 0}, part.get());
  EXPECT_EQ(part.maximum, std::vector<float>(4, -kInfinity));
  EXPECT_EQ(part.sum, std::vector<float>(4, 0.0f));
  EXPECT_EQ(part.output, std::vector<float>(256, 0.0f));
  std::vector<float> out(256, NAN), lse(4, NAN);
  normalise(part.get(), 4, 64, nullptr, out.data(), lse.data());
  EXPECT_EQ(out, std::vector<float>(256, 0.0f));
  EXPECT_EQ(lse, std::vector<float>(4, -kInfinity));

  PartialStorage into(4, 64);
  attend_all(kv.query(), kv.view(), {nullptr, 0, 10}, into.get());
  const PartialStorage before = into;
  merge(into.get(), part.get(), 4, 64);
  EXPECT_EQ(into.output, before.output);
  merge(part.get(), into.get(), 4, 64);
  EXPECT_EQ(part.output, before.output);
  EXPECT_EQ(part.sum, before.sum);
}

TEST_P(Property, any_cut_merges_to_the_whole) {
  KvCase kv({{3, 1, 64, 96}, DType::f16, DType::f16, 150, Layout::side_by_side, 16, 4, 3.0f});
  const double bound = 2 * tolerance(kv).output;  // two results, each within it of the truth
  const std::vector<float> whole = attend(kv, 0, {nullptr, 0, 150});
  for (int cuts = 1; cuts <= 12; ++cuts) {
    std::vector<std::int64_t> at{0, 150};
    for (int i = 0; i < cuts; ++i) at.push_back(static_cast<std::int64_t>(kv.random()() % 151));
    std::sort(at.begin(), at.end());
    PartialStorage sum(3, 96), piece(3, 96);
    attend_list(kv.query(), kv.view(), 0, {nullptr, 0, 0}, sum.get(), nullptr, 0);
    for (std::size_t i = 0; i + 1 < at.size(); ++i) {
      attend_list(kv.query(), kv.view(), 0, {nullptr, at[i], at[i + 1] - at[i]}, piece.get(), nullptr, 0);
      merge(sum.get(), piece.get(), 3, 96);
    }
    std::vector<float> out(whole.size());
    normalise(sum.get(), 3, 96, nullptr, out.data(), nullptr);
    for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], whole[i], bound) << cuts << " cuts";
  }
}

TEST_P(Property, order_of_tokens_does_not_matter) {
  KvCase kv({{4, 1, 128, 64}, DType::bf16, DType::f16, 130});
  const double bound = 2 * tolerance(kv).output;
  std::vector<std::int32_t> ids = all_tokens(kv);
  const std::vector<float> ascending = attend(kv, 0, list_of(ids));
  std::shuffle(ids.begin(), ids.end(), kv.random());
  const std::vector<float> shuffled = attend(kv, 0, list_of(ids));
  for (std::size_t i = 0; i < ascending.size(); ++i) ASSERT_NEAR(ascending[i], shuffled[i], bound);
}

TEST_P(Property, ids_and_a_range_agree_exactly_in_every_layout) {
  std::vector<float> first;
  for (const Layout layout : {Layout::side_by_side, Layout::padded, Layout::head_major}) {
    KvCase kv({{4, 2, 64, 64}, DType::f16, DType::f16, 100, layout});  // the same seed: the same rows
    const std::vector<float> range = attend(kv, 1, {nullptr, 0, 100});
    EXPECT_EQ(range, attend(kv, 1, list_of(all_tokens(kv))));
    PartialStorage part(4, 64);
    std::vector<float> out(256);
    attend_all(kv.query(), kv.view(), {nullptr, 0, 100}, part.get());
    normalise(part.get(), 4, 64, nullptr, out.data(), nullptr);
    EXPECT_TRUE(std::equal(range.begin(), range.end(), out.begin() + 128));
    if (first.empty()) first = range;
    EXPECT_EQ(range, first);
  }
}

TEST_P(Property, a_constant_value_comes_back) {
  KvCase kv({{4, 1, 64, 64}, DType::f16, DType::f16, 200, Layout::side_by_side, 16, 3, 4.0f});
  for (std::int64_t t = 0; t < 200; ++t) kv.set_v(t, 0, std::vector<float>(64, -2.75f));
  // Numerator and denominator add the same weights, in different orders: n u each.
  for (const float x : attend(kv, 0, {nullptr, 0, 200})) ASSERT_NEAR(x, -2.75f, 2.75 * 2 * 202 * 0x1p-24);
}

TEST_P(Property, huge_logits_choose_the_largest_key) {
  KvCase kv({{1, 1, 64, 64}, DType::f32, DType::f32, 100});
  kv.params().scale = 1;
  std::fill(kv.q().begin(), kv.q().end(), 1.0f);
  for (const float size : {1e4f, 1e30f}) {
    for (std::int64_t t = 0; t < 100; ++t) kv.set_k(t, 0, std::vector<float>(64, t == 71 ? size / 64 : -size / 64));
    float lse = 0;
    const std::vector<float> out = attend(kv, 0, {nullptr, 0, 100}, &lse);
    EXPECT_EQ(out, kv.v(71, 0));
    EXPECT_NEAR(lse, size, size * 66 * 0x1p-24);
  }
}

TEST_P(Property, logits_far_below_zero_are_no_empty_sum) {
  KvCase kv({{1, 1, 64, 64}, DType::f32, DType::f32, 40});
  kv.params().scale = 1;
  std::fill(kv.q().begin(), kv.q().end(), 1.0f);
  for (std::int64_t t = 0; t < 40; ++t) kv.set_k(t, 0, std::vector<float>(64, -1e34f));
  for (std::int64_t t = 0; t < 40; ++t) kv.set_v(t, 0, std::vector<float>(64, 5));
  for (const float x : attend(kv, 0, {nullptr, 0, 40})) ASSERT_NEAR(x, 5, 5 * 2 * 42 * 0x1p-24);
}

// Weights down to e^-87 against the double exponential: logits are exact (one-hot keys), so only exp and the sum round.
TEST_P(Property, weights_are_exponentials_to_2e_7) {
  KvCase kv({{1, 1, 64, 64}, DType::f32, DType::f32, 2});
  kv.params().scale = 1;
  std::fill(kv.q().begin(), kv.q().end(), 1.0f);
  const auto one_hot = [](float x) {
    std::vector<float> key(64, 0.0f);
    key[0] = x;
    return key;
  };
  kv.set_k(0, 0, one_hot(0));
  kv.set_v(0, 0, std::vector<float>(64, 0.0f));
  kv.set_v(1, 0, std::vector<float>(64, 1.0f));
  for (float x = 0; x > -87; x -= 0.0371f) {
    kv.set_k(1, 0, one_hot(x));
    PartialStorage part(1, 64);
    attend_list(kv.query(), kv.view(), 0, {nullptr, 0, 2}, part.get(), nullptr, 0);
    const double want = std::exp(static_cast<double>(x));
    ASSERT_NEAR(part.output[0], want, 1.6e-7 * want) << "exp(" << x << ")";
  }
}

// Eq. 14: with p the mass of the chosen tokens I, |o - o(I)| <= 2 (1 - p) max |v|.
TEST_P(Property, error_of_a_choice_is_bounded_by_the_mass_left_out) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    KvCase kv({{4, 1, 64, 64}, DType::f16, DType::f16, 300, Layout::side_by_side, 16, seed, 2.0f});
    const Tolerance slack = tolerance(kv);
    double v_max = 0;
    for (std::int64_t t = 0; t < 300; ++t) v_max = std::max(v_max, norm(kv.v(t, 0)));
    std::vector<std::int32_t> ids = all_tokens(kv);
    std::erase_if(ids, [&](std::int32_t) { return kv.random()() % 4 == 0; });
    float lse_all[4], lse_chosen[4];
    const std::vector<float> all = attend(kv, 0, {nullptr, 0, 300}, lse_all);
    const std::vector<float> chosen = attend(kv, 0, list_of(ids), lse_chosen);
    for (std::size_t h = 0; h < 4; ++h) {
      const double mass = std::exp(static_cast<double>(lse_chosen[h]) - lse_all[h]);
      double error = 0;
      for (std::size_t i = h * 64; i < h * 64 + 64; ++i) error += std::pow(static_cast<double>(all[i]) - chosen[i], 2);
      ASSERT_LT(mass, 1);
      ASSERT_LE(std::sqrt(error), 2 * (1 - mass) * v_max + 2 * 8 * slack.output + 4 * slack.weight * v_max);
      ASSERT_GT(std::sqrt(error), 0);
    }
  }
}

TEST(Normalise, a_sink_joins_the_denominator_only) {
  // One token with logit 1 and value 6, a sink of logit 0: e / (e + 1) of it.
  float output[1] = {6}, maximum[1] = {1}, sum[1] = {1}, out[1], lse[1];
  const float sink[1] = {0};
  normalise({output, maximum, sum}, 1, 1, sink, out, lse);
  EXPECT_NEAR(out[0], 6 * std::exp(1.0) / (std::exp(1.0) + 1), 6 * 4 * 0x1p-24);
  EXPECT_NEAR(lse[0], std::log(std::exp(1.0) + 1), 2 * 4 * 0x1p-24);
}

TEST(Normalise, a_sink_far_above_every_logit_does_not_overflow) {
  float output[1] = {6}, maximum[1] = {-50}, sum[1] = {2}, out[1], lse[1];
  const float sink[1] = {100};
  normalise({output, maximum, sum}, 1, 1, sink, out, lse);
  EXPECT_EQ(out[0], 0);
  EXPECT_EQ(lse[0], 100);
}

TEST(Normalise, log_sum_exp_is_in_natural_logarithms) {
  float output[1] = {0}, maximum[1] = {2}, sum[1] = {5}, out[1], lse[1];
  normalise({output, maximum, sum}, 1, 1, nullptr, out, lse);
  EXPECT_NEAR(lse[0], 2 + std::log(5.0), 0x1p-21);
}

TEST(Merge, weighs_by_the_maxima) {
  // Two tokens of logits 0 and ln 3, values 4 and 8: weights 1 and 3.
  float o1[1] = {4}, m1[1] = {0}, l1[1] = {1}, o2[1] = {8}, m2[1] = {std::log(3.0f)}, l2[1] = {1}, out[1], lse[1];
  merge({o1, m1, l1}, {o2, m2, l2}, 1, 1);
  normalise({o1, m1, l1}, 1, 1, nullptr, out, lse);
  EXPECT_NEAR(out[0], 7, 8 * 4 * 0x1p-24);
  EXPECT_NEAR(lse[0], std::log(4.0), 4 * 0x1p-23);
}

}  // namespace
}  // namespace tactic::test
