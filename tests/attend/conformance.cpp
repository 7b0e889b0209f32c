// Every function, instruction set, type, layout and shape against the double-precision reference.
#include <gtest/gtest.h>

#include <numeric>

#include "attend/attend.h"
#include "support/kv.h"

namespace tactic::test {
namespace {

std::vector<std::int32_t> some_tokens(std::int64_t tokens, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> ids;
  for (std::int32_t t = 0; t < tokens; ++t) {
    if (random() % 3 != 0) ids.push_back(t);
  }
  return ids;
}

// Normalised outputs and log-sum-exps agree.
void expect_same(PartialStorage& got, PartialStorage& want, const Tolerance& bound) {
  std::vector<float> out(got.output.size()), out_want(got.output.size());
  std::vector<float> lse(got.sum.size()), lse_want(got.sum.size());
  normalise(got.get(), got.heads, got.dim, nullptr, out.data(), lse.data());
  normalise(want.get(), want.heads, want.dim, nullptr, out_want.data(), lse_want.data());
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], out_want[i], bound.output) << "element " << i;
  for (std::size_t h = 0; h < lse.size(); ++h) {
    ASSERT_NEAR(lse[h], lse_want[h], bound.weight + bound.logit + 0x1p-22 * std::abs(lse_want[h])) << "head " << h;
    ASSERT_NEAR(got.maximum[h], want.maximum[h], bound.logit) << "head " << h;
  }
}

void check_case(const KvSpec& spec, float softcap) {
  KvCase kv(spec);
  kv.params().softcap = softcap;
  kv.params().scale = 1.0f / std::sqrt(static_cast<float>(spec.shape.head_dim));
  const Tolerance bound = tolerance(kv);
  const int group = spec.shape.group();
  const std::vector<std::int32_t> ids = some_tokens(spec.tokens, spec.seed);
  const TokenList lists[] = {{ids.data(), 0, static_cast<std::int64_t>(ids.size())}, {nullptr, 3, spec.tokens - 5}};
  for (const TokenList& list : lists) {
    const auto stride = static_cast<std::size_t>(list.count) + 2;
    for (int head = 0; head < spec.shape.kv_heads; ++head) {
      PartialStorage got(group, spec.shape.v_head_dim), want(group, spec.shape.v_head_dim);
      std::vector<float> logits(stride * static_cast<std::size_t>(group), 77.0f), logits_want(logits), scores(logits);
      attend_list(kv.query(), kv.view(), head, list, got.get(), logits.data(), static_cast<std::int64_t>(stride));
      score_list(kv.query(), kv.view(), head, list, scores.data(), static_cast<std::int64_t>(stride));
      reference::attend_list(kv.query(), kv.view(), head, list, want.get(), logits_want.data(),
                             static_cast<std::int64_t>(stride));
      expect_same(got, want, bound);
      EXPECT_EQ(logits, scores);
      for (std::size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], logits_want[i], bound.logit) << "logit " << i;
    }
    PartialStorage got(spec.shape.q_heads, spec.shape.v_head_dim), want(spec.shape.q_heads, spec.shape.v_head_dim);
    attend_all(kv.query(), kv.view(), list, got.get());
    reference::attend_all(kv.query(), kv.view(), list, want.get());
    expect_same(got, want, bound);
  }
}

const char* name_of(DType type) { return type == DType::f32 ? "f32" : type == DType::f16 ? "f16" : "bf16"; }

class Conformance : public testing::TestWithParam<Isa> {
 protected:
  IsaScope isa_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, Conformance, testing::ValuesIn(supported_isas()),
                         [](const auto& isa) { return std::string(tactic::name_of(isa.param)); });

TEST_P(Conformance, every_pair_of_types) {
  std::uint64_t seed = 10;
  for (const DType k : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType v : {DType::f32, DType::f16, DType::bf16}) {
      for (const Layout layout : {Layout::side_by_side, Layout::padded, Layout::head_major, Layout::blocks}) {
        SCOPED_TRACE(std::string(name_of(k)) + " K, " + name_of(v) + " V, layout " + std::to_string(static_cast<int>(layout)));
        check_case({{6, 2, 64, 64}, k, v, 77, layout, 16, ++seed}, 0);
      }
    }
  }
}

TEST_P(Conformance, every_pair_of_head_dims) {
  std::uint64_t seed = 100;
  for (const int k : {64, 80, 96, 128, 256}) {
    for (const int v : {64, 80, 96, 128, 256}) {
      SCOPED_TRACE("head_dim " + std::to_string(k) + ", v_head_dim " + std::to_string(v));
      check_case({{4, 2, k, v}, DType::f16, DType::f16, 70, Layout::side_by_side, 16, ++seed}, 0);
    }
  }
}

TEST_P(Conformance, every_group) {
  for (int group = 1; group <= kMaxGroup; ++group) {
    SCOPED_TRACE("group " + std::to_string(group));
    check_case({{2 * group, 2, 64, 80}, DType::f16, DType::bf16, 69, Layout::side_by_side, 16, static_cast<std::uint64_t>(group)},
               0);
  }
}

TEST_P(Conformance, every_length_around_tiles) {
  for (int tokens = 6; tokens <= 80; ++tokens) {
    SCOPED_TRACE("tokens " + std::to_string(tokens));
    check_case({{3, 1, 64, 64}, DType::f16, DType::f16, tokens, Layout::blocks, 7, 5}, 0);
  }
}

TEST_P(Conformance, softcap) {
  for (const float cap : {1.0f, 30.0f, 50.0f}) {
    SCOPED_TRACE("softcap " + std::to_string(cap));
    check_case({{4, 1, 128, 128}, DType::bf16, DType::f16, 90, Layout::side_by_side, 16, 8, 3.0f}, cap);
  }
}

}  // namespace
}  // namespace tactic::test
