// exp and softcap on vectors. Per-target: no ordinary include guard.
#if defined(TACTIC_SELECT_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SELECT_MATH_INL_H
#undef TACTIC_SELECT_MATH_INL_H
#else
#define TACTIC_SELECT_MATH_INL_H
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// exp(x), relative error below 3e-7 for |x| <= 87; 0 below -87, x must be at most 88; NaN stays NaN. The polynomial is that of
// Cephes' expf on |r| <= ln 2 / 2.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exponential(D d, V x) {
  const hn::RebindToSigned<D> di;
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504f)));
  const V nf = hn::ConvertTo(d, n);
  V r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), x);  // ln 2 in two parts: the first has few bits, so the product is exact
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  const V y = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const V scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.0f)), hn::Mul(y, scale));
}

// cap * tanh(x / cap)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V soft_cap(D d, V x, float cap) {
  const V one = hn::Set(d, 1.0f);
  const V u = hn::Mul(hn::Abs(x), hn::Set(d, -2.0f / cap));
  const V t = exponential(d, u);  // exp(-2 |x| / cap): tanh |u| = (1 - t) / (1 + t)
  return hn::CopySign(hn::Mul(hn::Set(d, cap), hn::Div(hn::Sub(one, t), hn::Add(one, t))), x);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();
#endif
