// The weighted sum of V rows, o_h += sum_t p_ht v_t, each row converted once for a group's query heads. Per target.
#if defined(TACTIC_ATTEND_WEIGH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_ATTEND_WEIGH_INL_H
#undef TACTIC_ATTEND_WEIGH_INL_H
#else
#define TACTIC_ATTEND_WEIGH_INL_H
#endif

#include "attend/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::attend::HWY_NAMESPACE {

// kHeads * kVectors accumulators, kVectors V vectors and a weight in registers; at least 8 accumulators hide the latency of
// two FMA pipes.
constexpr int kWeighHeads = 4;
constexpr int kWeighVectors = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 4 : 2;

struct WeighTask {
  const float* p = nullptr;  // [heads, p_stride]
  std::size_t p_stride = 0;
  const std::byte* const* rows = nullptr;   // [count]
  const std::byte* const* ahead = nullptr;  // [count] rows to prefetch meanwhile, or null
  int count = 0;
  float* out = nullptr;  // [heads, dim]
  std::size_t dim = 0;
  // Rows [count] to prefetch whole in the first and the second pass over the tokens (a pass takes some dims of some heads), or
  // null, and their bytes.
  const std::byte* const* whole[2] = {};
  std::size_t whole_bytes[2] = {};
};

// Passes over the tokens that weigh_tokens() makes.
inline int weigh_passes(int heads, std::size_t dim) {
  const std::size_t columns = static_cast<std::size_t>(kWeighVectors) * hn::Lanes(Floats());
  return (heads + kWeighHeads - 1) / kWeighHeads * static_cast<int>((dim + columns - 1) / columns);
}

// Dims [column, column + kVectors * lanes) of kHeads heads from `head` on.
template <DType kType, int kHeads, int kVectors>
HWY_INLINE void weigh_block(const WeighTask& task, std::size_t head, std::size_t column, int pass) {
  const std::byte* const* const whole = pass < 2 ? task.whole[pass] : nullptr;
  const std::size_t whole_bytes = pass < 2 ? task.whole_bytes[pass] : 0;
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  float* const out = task.out + head * task.dim + column;
  const float* const p = task.p + head * task.p_stride;
  const std::size_t first_byte = column * size_of(kType);
  const std::size_t last_byte = first_byte + static_cast<std::size_t>(kVectors) * lanes * size_of(kType);
  Vector sum[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) {
      sum[h][j] = hn::LoadU(d, out + static_cast<std::size_t>(h) * task.dim + static_cast<std::size_t>(j) * lanes);
    }
  }
  for (int t = 0; t < task.count; ++t) {
    if (task.ahead != nullptr) {
      for (std::size_t byte = first_byte; byte < last_byte; byte += 64) prefetch(task.ahead[t] + byte);
    }
    if (whole != nullptr) {
      for (std::size_t byte = 0; byte < whole_bytes; byte += 64) prefetch(whole[t] + byte);
    }
    Vector v[kVectors];
    for (int j = 0; j < kVectors; ++j) v[j] = load<kType>(task.rows[t], column + static_cast<std::size_t>(j) * lanes);
    for (int h = 0; h < kHeads; ++h) {
      const Vector weight = hn::Set(d, p[static_cast<std::size_t>(h) * task.p_stride + static_cast<std::size_t>(t)]);
      for (int j = 0; j < kVectors; ++j) sum[h][j] = hn::MulAdd(weight, v[j], sum[h][j]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) {
      hn::StoreU(sum[h][j], d, out + static_cast<std::size_t>(h) * task.dim + static_cast<std::size_t>(j) * lanes);
    }
  }
}

// All dims of kHeads heads.
template <DType kType, int kHeads>
HWY_INLINE void weigh_heads(const WeighTask& task, std::size_t head, int& pass) {
  const std::size_t lanes = hn::Lanes(Floats());
  std::size_t column = 0;
  for (; column + kWeighVectors * lanes <= task.dim; column += kWeighVectors * lanes) {
    weigh_block<kType, kHeads, kWeighVectors>(task, head, column, pass++);
  }
  if (column + 2 * lanes <= task.dim) {
    weigh_block<kType, kHeads, 2>(task, head, column, pass++);
    column += 2 * lanes;
  }
  if (column < task.dim) weigh_block<kType, kHeads, 1>(task, head, column, pass++);
}

template <DType kType>
HWY_INLINE void weigh_tokens(WeighTask task, int heads) {
  int h = 0;
  int pass = 0;
  for (; h + kWeighHeads <= heads; h += kWeighHeads) {
    weigh_heads<kType, kWeighHeads>(task, static_cast<std::size_t>(h), pass);
    task.ahead = nullptr;  // the first block has asked for them
  }
  const auto rest = static_cast<std::size_t>(h);
  switch (heads - h) {
    case 3:
      return weigh_heads<kType, 3>(task, rest, pass);
    case 2:
      return weigh_heads<kType, 2>(task, rest, pass);
    case 1:
      return weigh_heads<kType, 1>(task, rest, pass);
    default:
      return;
  }
}

}  // namespace tactic::attend::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // per-target guard
