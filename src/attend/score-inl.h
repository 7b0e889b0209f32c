// Dot products of a group's query heads with K rows, converted once for all heads. Per target.
#if defined(TACTIC_ATTEND_SCORE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_ATTEND_SCORE_INL_H
#undef TACTIC_ATTEND_SCORE_INL_H
#else
#define TACTIC_ATTEND_SCORE_INL_H
#endif

#include "attend/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::attend::HWY_NAMESPACE {

// Heads per block: kHeads * 4 accumulators, 4 K vectors and a q vector must fit the registers, 32 of AVX-512 and NEON, 16 else.
// 7 heads are one too many for that, and still faster than 4 and 3, which convert K twice: at head_dim 64 on a Zen 4,
// 39 cycles a token instead of 42.
constexpr int kScoreHeads = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 7 : 2;

// Writes the sums of the lanes of four vectors to out[0 .. 3].
HWY_INLINE void sum_lanes(const Vector (&x)[4], float* out) {
  const Floats d;
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) hn::StoreU(x[i], d, out + i);
#else
  const hn::Repartition<double, Floats> pairs;
  const auto ab = hn::Add(hn::InterleaveLower(d, x[0], x[1]), hn::InterleaveUpper(d, x[0], x[1]));  // a02 b02 a13 b13 a block
  const auto cd = hn::Add(hn::InterleaveLower(d, x[2], x[3]), hn::InterleaveUpper(d, x[2], x[3]));
  const auto lower = hn::InterleaveLower(pairs, hn::BitCast(pairs, ab), hn::BitCast(pairs, cd));
  const auto upper = hn::InterleaveUpper(pairs, hn::BitCast(pairs, ab), hn::BitCast(pairs, cd));
  const auto blocks = hn::Add(hn::BitCast(d, lower), hn::BitCast(d, upper));  // a b c d in every block of 128 bits
  const hn::Full128<float> quad;
#if HWY_TARGET == HWY_AVX3
  const hn::Half<Floats> half;
  const auto two = hn::Add(hn::LowerHalf(half, blocks), hn::UpperHalf(half, blocks));
  hn::StoreU(hn::Add(hn::LowerHalf(quad, two), hn::UpperHalf(quad, two)), quad, out);
#elif HWY_TARGET == HWY_AVX2
  hn::StoreU(hn::Add(hn::LowerHalf(quad, blocks), hn::UpperHalf(quad, blocks)), quad, out);
#else
  hn::StoreU(blocks, quad, out);
#endif
#endif
}

// scores[h * stride + t] = q_h . k_t for kHeads heads and 4 tokens. q [kHeads, dim].
template <DType kType, int kHeads>
HWY_INLINE void score_block(const float* q, std::size_t dim, const std::byte* const* rows, float* scores, std::size_t stride) {
  const Floats d;
  Vector sum[kHeads][4];
  for (int h = 0; h < kHeads; ++h) {
    for (int t = 0; t < 4; ++t) sum[h][t] = hn::Zero(d);
  }
  const std::byte* const row0 = rows[0];
  const std::byte* const row1 = rows[1];
  const std::byte* const row2 = rows[2];
  const std::byte* const row3 = rows[3];
  for (std::size_t i = 0; i < dim; i += hn::Lanes(d)) {
    const Vector k[4] = {load<kType>(row0, i), load<kType>(row1, i), load<kType>(row2, i), load<kType>(row3, i)};
    for (int h = 0; h < kHeads; ++h) {
      const Vector qi = hn::LoadU(d, q + static_cast<std::size_t>(h) * dim + i);
      for (int t = 0; t < 4; ++t) sum[h][t] = hn::MulAdd(qi, k[t], sum[h][t]);
    }
  }
  for (int h = 0; h < kHeads; ++h) sum_lanes(sum[h], scores + static_cast<std::size_t>(h) * stride);
}

// score_block for `heads` <= kMost heads.
template <DType kType, int kMost>
HWY_INLINE void score_some(int heads, const float* q, std::size_t dim, const std::byte* const* rows, float* scores,
                           std::size_t stride) {
  if (heads == kMost) return score_block<kType, kMost>(q, dim, rows, scores, stride);
  if constexpr (kMost > 1) score_some<kType, kMost - 1>(heads, q, dim, rows, scores, stride);
}

// The same for any number of heads, in blocks of nearly equal size.
template <DType kType>
HWY_INLINE void score_tokens(const float* q, std::size_t dim, int heads, const std::byte* const* rows, float* scores,
                             std::size_t stride) {
  for (int blocks = (heads + kScoreHeads - 1) / kScoreHeads; blocks > 0; --blocks) {
    const int now = (heads + blocks - 1) / blocks;
    score_some<kType, kScoreHeads>(now, q, dim, rows, scores, stride);
    heads -= now;
    q += static_cast<std::size_t>(now) * dim;
    scores += static_cast<std::size_t>(now) * stride;
  }
}

}  // namespace tactic::attend::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // per-target guard
