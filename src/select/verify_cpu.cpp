// Exact masses of attended clusters, from the logits that attention wrote.
#include <cmath>

#include "core/isa.h"
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/verify_cpu.cpp"
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

// Tokens a block converts at once: small enough that [group, block] weights stay in L1, a multiple of every vector length.
constexpr int kBlock = 64;

// sums [clusters, group]: token i's weights are added to the row of its cluster.
void scatter(const HeadTable& table, int group, std::span<const std::int32_t> ids, const float* logits, std::int64_t stride,
             const float* reference, float* sums) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  alignas(64) float weights[kMaxGroup * kBlock];
  const auto count = static_cast<std::int64_t>(ids.size());
  for (std::int64_t i0 = 0; i0 < count; i0 += kBlock) {
    const int n = static_cast<int>(std::min<std::int64_t>(kBlock, count - i0));
    for (int g = 0; g < group; ++g) {
      const float* from = logits + g * stride + i0;
      const auto shift = hn::Set(d, reference[g]);
      int i = 0;
      for (; i + lanes <= n; i += lanes)
        hn::Store(hn::Exp(d, hn::Sub(hn::LoadU(d, from + i), shift)), d, weights + g * kBlock + i);
      for (; i < n; ++i) weights[g * kBlock + i] = std::exp(from[i] - reference[g]);
    }
    for (int i = 0; i < n; ++i) {
      float* row =
          sums + static_cast<std::int64_t>(
                     table.column_of[static_cast<std::size_t>(ids[static_cast<std::size_t>(i0 + i)] - table.first_token)]) *
                     group;
      for (int g = 0; g < group; ++g) row[g] += weights[g * kBlock + i];
    }
  }
}

}  // namespace

decltype(&scatter) scatter_kernel() { return &scatter; }

}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tactic {

void sum_exact_masses(const HeadTable& table, int group, std::span<const std::int32_t> ids, const float* token_logits,
                      std::int64_t token_stride, const float* reference, std::span<const std::int32_t> clusters, float* exact,
                      SelectScratch& scratch) {
  scratch.floats.resize(static_cast<std::size_t>(table.count) * static_cast<std::size_t>(group));
  float* sums = scratch.floats.data();
  for (const std::int32_t c : clusters) std::fill_n(sums + static_cast<std::int64_t>(c) * group, group, 0.0f);
  auto kernel = HWY_NAMESPACE::scatter_kernel();
#if HWY_TARGETS & HWY_AVX2
  if (active_isa() == Isa::avx2) kernel = N_AVX2::scatter_kernel();
#endif
#if HWY_TARGETS & HWY_AVX3
  if (active_isa() == Isa::avx512) kernel = N_AVX3::scatter_kernel();
#endif
  kernel(table, group, ids, token_logits, token_stride, reference, sums);
  for (const std::int32_t c : clusters) {
    for (int g = 0; g < group; ++g)
      exact[static_cast<std::int64_t>(g) * table.stride + c] = sums[static_cast<std::int64_t>(c) * group + g];
  }
}

}  // namespace tactic
#endif  // HWY_ONCE
