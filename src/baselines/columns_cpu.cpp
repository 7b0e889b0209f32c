// Softmax weights of a block of queries, summed over the block by token: the inner loop of H2O's and SnapKV's scores.
#include <algorithm>
#include <cmath>

#include "baselines/columns.h"
#include "core/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "baselines/columns_cpu.cpp"
// clang-format off
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// logits[0 .. count) become exp(logit - largest); returns their sum.
float exponentiate(float* logits, std::int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const float largest = *std::max_element(logits, logits + count);
  const auto shift = hn::Set(d, largest);
  auto sums = hn::Zero(d);
  std::int64_t t = 0;
  for (; t + lanes <= count; t += lanes) {
    const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, logits + t), shift));
    hn::StoreU(weight, d, logits + t);
    sums = hn::Add(sums, weight);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; t < count; ++t) sum += logits[t] = std::exp(logits[t] - largest);
  return sum;
}

void add_block(float* logits, std::int64_t stride, int rows, std::int64_t first_count, double* column) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t width = first_count + rows - 1;
  float scale[kColumnBlock];
  for (int r = 0; r < rows; ++r) {
    float* row = logits + r * stride;
    scale[r] = 1 / exponentiate(row, first_count + r);
    std::fill(row + first_count + r, row + width, 0.0f);  // tokens behind the query's own
  }
  std::int64_t t = 0;
  alignas(64) float sums[HWY_MAX_BYTES / sizeof(float)];
  for (; t + lanes <= width; t += lanes) {
    auto sum = hn::Zero(d);
    for (int r = 0; r < rows; ++r) sum = hn::MulAdd(hn::LoadU(d, logits + r * stride + t), hn::Set(d, scale[r]), sum);
    hn::Store(sum, d, sums);
    for (std::int64_t i = 0; i < lanes; ++i) column[t + i] += static_cast<double>(sums[i]);
  }
  for (; t < width; ++t) {
    for (int r = 0; r < rows; ++r) column[t] += static_cast<double>(scale[r] * logits[r * stride + t]);
  }
}

}  // namespace

decltype(&add_block) block_kernel() { return &add_block; }

}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tactic {

void add_weight_block(float* logits, std::int64_t stride, int rows, std::int64_t first_count, double* column) {
  auto kernel = HWY_NAMESPACE::block_kernel();
#if HWY_TARGETS & HWY_AVX2
  if (active_isa() == Isa::avx2) kernel = N_AVX2::block_kernel();
#endif
#if HWY_TARGETS & HWY_AVX3
  if (active_isa() == Isa::avx512) kernel = N_AVX3::block_kernel();
#endif
  kernel(logits, stride, rows, first_count, column);
}

}  // namespace tactic
#endif  // HWY_ONCE
