// Loads of K and V elements as f32 vectors, and the exponential of the softmax. Per target.
#if defined(TACTIC_ATTEND_CONVERT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_ATTEND_CONVERT_INL_H
#undef TACTIC_ATTEND_CONVERT_INL_H
#else
#define TACTIC_ATTEND_CONVERT_INL_H
#endif

#include <cstddef>
#include <cstdint>

#include "core/types.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::attend::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;

// Into the L2: filling the L1 from afar holds one of its few miss buffers all the while, and dense attention on a Zen 4 falls
// from 16 to 10 GB/s a thread.
HWY_INLINE void prefetch(const std::byte* line) { __builtin_prefetch(line, 0, 2); }

// Elements [i, i + lanes) of a row.
template <DType kType>
HWY_INLINE Vector load(const std::byte* row, std::size_t i) {
  const Floats d;
  if constexpr (kType == DType::f32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(row) + i);
  } else {
    const hn::Rebind<std::uint16_t, Floats> d16;
    const hn::Rebind<std::uint32_t, Floats> d32;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(row) + i);
    if constexpr (kType == DType::bf16) {
      return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
    } else {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
      // Highway's own emulation turns infinity and NaN into large numbers. Here the exponent is moved by a product, which
      // is exact for subnormals too, and all-ones exponents are restored.
      const auto wide = hn::PromoteTo(d32, bits);
      const auto magnitude = hn::And(wide, hn::Set(d32, 0x7fffu));
      const auto value = hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::Set(d, 0x1p112f));
      const auto special = hn::BitCast(d, hn::Set(d32, 0x7f800000u));
      const auto whole = hn::IfThenElse(hn::Ge(value, hn::Set(d, 65536.0f)), hn::Or(value, special), value);
      return hn::Or(whole, hn::BitCast(d, hn::ShiftLeft<16>(hn::AndNot(hn::Set(d32, 0x7fffu), wide))));
#else
      return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, Floats>(), bits));
#endif
    }
  }
}

// e^x for x <= 0, 0 below -87; NaN stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2 and ln 2 in two parts (the first has 9 bits,
// so n times it is exact); e^r = 1 + r + r^2 P(r), P the degree-4 interpolant at Chebyshev nodes, relative error 1.1e-8. With
// the roundings of the last steps (product, sum: 2^-24 each, r: |r| 2^-24) the result is good to 1.6e-7.
HWY_INLINE Vector exp_nonpositive(Vector x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const auto low = hn::Lt(x, hn::Set(d, -87.0f));  // e^-87 is the last that 2^n can carry as a normal number
  x = hn::IfThenElse(low, hn::Set(d, -87.0f), x);
  const auto n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  auto p = hn::MulAdd(hn::Set(d, 0.0013926184f), r, hn::Set(d, 0.00836317893f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.0416665561f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.166665763f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127))));
  return hn::IfThenZeroElse(low, hn::Mul(p, power));  // a product, because NaN must survive it
}

// cap * tanh(x / cap), to cap * 3e-7 absolute: (1 - e) / (1 + e) with e = exp(-2 |x / cap|).
HWY_INLINE Vector soften(Vector x, float cap) {
  const Floats d;
  const auto e = exp_nonpositive(hn::Mul(hn::Abs(x), hn::Set(d, -2.0f / cap)));
  const auto one = hn::Set(d, 1.0f);
  const auto magnitude = hn::Mul(hn::Set(d, cap), hn::Div(hn::Sub(one, e), hn::Add(one, e)));
  return hn::CopySign(magnitude, x);
}

}  // namespace tactic::attend::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // per-target guard
