// Attention over a selection against the reference, and its report.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "cases.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{6, 2, 64, 80};
constexpr std::int64_t kPrompt = 200;

// The query head over its own tokens, in double.
std::vector<double> expected(WatchedCase& layer, std::int64_t token, int head, const std::vector<std::int32_t>& list) {
  std::vector<double> out(static_cast<std::size_t>(kShape.v_head_dim), 0.0);
  double sum = 0;
  for (const std::int32_t t : list) {
    const auto k = layer.kv().k(t, head / 3), v = layer.kv().v(t, head / 3);
    double logit = 0;
    for (std::size_t i = 0; i < k.size(); ++i)
      logit += static_cast<double>(layer.query(token)[head * 64 + static_cast<int>(i)]) * static_cast<double>(k[i]);
    const double weight = std::exp(logit * 0.125);
    sum += weight;
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += weight * static_cast<double>(v[i]);
  }
  for (double& x : out) x /= sum;
  return out;
}

class AttendSelection : public ::testing::TestWithParam<Sharing> {};

TEST_P(AttendSelection, EveryHeadAttendsItsTokensAndTheReportCountsThem) {
  WatchedCase layer(kShape, kPrompt, 10, 4);
  const std::int64_t token = kPrompt + 9;
  const Selection selection = layer.choose({.method = Baseline::oracle_top_k, .sharing = GetParam()}, tokens(20), token);
  std::vector<float> out(6 * 80), estimated(6);
  std::vector<std::int64_t> attended(2), budget(6);
  std::vector<std::uint64_t> bits(2 * 4, 0);
  StepReport report;
  report.attended = attended;
  report.budget = budget;
  report.estimated_mass = estimated;
  report.token_bits = bits;
  ASSERT_EQ(
      attend_selection(layer.team(), layer.query_row(token), layer.view(token + 1), selection, out.data(), nullptr, &report),
      Status::ok);
  for (int head = 0; head < 6; ++head) {
    const auto list = selection.tokens[static_cast<std::size_t>(selection.by_query_head ? head : head / 3)];
    const auto oracle = expected(layer, token, head, list);
    // f32 sums of 30 to 70 terms of size 1.
    for (int i = 0; i < 80; ++i)
      EXPECT_NEAR(static_cast<double>(out[static_cast<std::size_t>(head * 80 + i)]), oracle[static_cast<std::size_t>(i)], 1e-5);
    EXPECT_EQ(budget[static_cast<std::size_t>(head)], 30);
  }
  double rows = 0;
  for (std::size_t h = 0; h < 2; ++h) {
    std::int64_t count = 0;
    for (std::size_t w = 0; w < 4; ++w) count += std::popcount(bits[h * 4 + w]);
    EXPECT_EQ(attended[h], count);
    EXPECT_GE(attended[h], 30);
    rows += static_cast<double>(count);
  }
  EXPECT_DOUBLE_EQ(report.bytes, rows * (64 + 80) * 2);
  EXPECT_DOUBLE_EQ(report.dense_bytes, 2.0 * static_cast<double>(token + 1) * (64 + 80) * 2);
}

INSTANTIATE_TEST_SUITE_P(Sharings, AttendSelection, ::testing::Values(Sharing::none, Sharing::united, Sharing::one));

TEST(AttendSelectionErrors, NanInAnAttendedRowIsReported) {
  WatchedCase layer(kShape, kPrompt, 1);
  layer.kv().set_v(0, 1, std::vector<float>(80, NAN));
  const Selection selection = layer.choose({.method = Baseline::streaming_llm}, tokens(20), kPrompt);
  std::vector<float> out(6 * 80);
  EXPECT_EQ(
      attend_selection(layer.team(), layer.query_row(kPrompt), layer.view(kPrompt + 1), selection, out.data(), nullptr, nullptr),
      Status::non_finite);
}

}  // namespace
}  // namespace tactic::test
