// Exact masses of attended clusters, from the logits that attention wrote.
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/verify_cpu.cpp"
// clang-format off
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "select/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// A token may lie above the reference, which knows the centroids and the always attended tokens alone; e^80 times any number of
// tokens is finite.
constexpr float kLargestLogit = 80.0f;

// exp(logit - reference); NaN stays NaN, which hn::Min does not promise.
template <class D, class V>
HWY_INLINE V weight_of(D d, V logit, V reference) {
  const V limit = hn::Set(d, kLargestLogit);
  const V x = hn::Sub(logit, reference);
  return exponential(d, hn::IfThenElse(hn::Gt(x, limit), limit, x));
}

void sum_runs(const HeadTable& table, int group, const float* logits, std::int64_t stride, const float* reference,
              std::span<const std::int32_t> clusters, float* exact) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  std::int64_t at = 0;
  for (const std::int32_t c : clusters) {
    const auto size = static_cast<int>(table.tokens[static_cast<std::size_t>(c)].size());
    for (int g = 0; g < group; ++g) {
      const float* from = logits + g * stride + at;
      const auto shift = hn::Set(d, reference[g]);
      auto sum = hn::Zero(d);
      int i = 0;
      for (; i + lanes <= size; i += lanes) sum = hn::Add(sum, weight_of(d, hn::LoadU(d, from + i), shift));
      if (i < size) {
        const auto mask = hn::FirstN(d, static_cast<std::size_t>(size - i));
        sum = hn::Add(sum, hn::IfThenElseZero(mask, weight_of(d, hn::MaskedLoad(mask, d, from + i), shift)));
      }
      exact[static_cast<std::int64_t>(g) * table.stride + c] = hn::GetLane(hn::SumOfLanes(d, sum));
    }
    at += size;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "select/dispatch.h"

namespace tactic {

void sum_exact_masses(const HeadTable& table, int group, const float* token_logits, std::int64_t token_stride,
                      const float* reference, std::span<const std::int32_t> clusters, float* exact) {
  TACTIC_PICK(sum_runs)(table, group, token_logits, token_stride, reference, clusters, exact);
}

}  // namespace tactic
#endif  // HWY_ONCE
