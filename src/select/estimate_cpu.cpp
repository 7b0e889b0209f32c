// Estimate: masses of clusters by the log-normal mean (estimation.md 2), weights of the tail, half-variances.
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/estimate_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "select/estimate_task.h"
#include "select/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;

// x = logit + h spread - reference, with what softcap does to the spread.
template <class V>
HWY_INLINE V half_variance(Floats d, V spread, V logit, const EstimateTask& task, float h) {
  V half = hn::Mul(spread, hn::Set(d, h));
  if (task.softcap > 0) {  // d logit / d raw = 1 - (logit / cap)^2
    const V ratio = hn::Mul(logit, hn::Set(d, 1.0f / task.softcap));
    const V slope = hn::NegMulAdd(ratio, ratio, hn::Set(d, 1.0f));
    half = hn::Mul(half, hn::Mul(slope, slope));
  }
  return half;
}

// At most kLargestExponent; NaN stays NaN, which hn::Min does not promise.
template <class V>
HWY_INLINE V bounded(Floats d, V x) {
  const V limit = hn::Set(d, kLargestExponent);
  return hn::IfThenElse(hn::Gt(x, limit), limit, x);
}

template <class V>
HWY_INLINE V log_normal(Floats d, V size, V spread, V logit, const EstimateTask& task, float h, float reference) {
  const V x = hn::Add(logit, hn::Sub(half_variance(d, spread, logit, task, h), hn::Set(d, reference)));
  return hn::Mul(size, exponential(d, bounded(d, x)));
}

// size exp(x + log cosh s), s = sqrt(2 h spread): log cosh s = s + log((1 + exp(-2 s)) / 2)
template <class V>
HWY_INLINE V two_point(Floats d, V size, V spread, V logit, const EstimateTask& task, float h, float reference) {
  const V half = half_variance(d, spread, logit, task, h);
  const V s = hn::Sqrt(hn::Max(hn::Add(half, half), hn::Zero(d)));
  const V x = hn::Add(logit, hn::Sub(s, hn::Set(d, reference)));
  const V e = exponential(d, bounded(d, x));
  const V other = exponential(d, hn::Mul(s, hn::Set(d, -2.0f)));
  return hn::Mul(hn::Mul(size, hn::Set(d, 0.5f)), hn::MulAdd(e, other, e));
}

template <bool Tail>
HWY_INLINE void estimate_row(const EstimateTask& task, int g, const HeadTable::Part& part, float h) {
  const Floats d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const HeadTable& table = *task.table;
  const float* logits = task.logits + static_cast<std::int64_t>(g) * table.stride;
  float* mass = task.mass + static_cast<std::int64_t>(g) * table.stride;
  const float reference = task.reference[g];
  const auto at = [&](auto size, auto spread, auto logit) HWY_ATTR {
    return Tail ? two_point(d, size, spread, logit, task, h, reference) : log_normal(d, size, spread, logit, task, h, reference);
  };
  const int end = part.first + part.clusters->count;
  int c = part.first;
  for (; c + lanes <= end; c += lanes) {
    hn::StoreU(at(hn::LoadU(d, table.size.data() + c), hn::LoadU(d, table.spread.data() + c), hn::LoadU(d, logits + c)), d,
               mass + c);
  }
  if (c < end) {
    const auto mask = hn::FirstN(d, static_cast<std::size_t>(end - c));
    const auto value = at(hn::MaskedLoad(mask, d, table.size.data() + c), hn::MaskedLoad(mask, d, table.spread.data() + c),
                          hn::MaskedLoad(mask, d, logits + c));
    hn::BlendedStore(value, mask, d, mass + c);
  }
}

void estimate(const EstimateTask& task, int group, bool tail) {
  const HeadTable& table = *task.table;
  const std::size_t parts = table.parts.size();
  for (int g = 0; g < group; ++g) {
    for (std::size_t p = 0; p < parts; ++p) {
      const float h = task.h == nullptr ? 0.0f : task.h[static_cast<std::size_t>(g) * parts + p];
      tail ? estimate_row<true>(task, g, table.parts[p], h) : estimate_row<false>(task, g, table.parts[p], h);
    }
    for (int c = table.count; c < table.stride; ++c) task.mass[static_cast<std::int64_t>(g) * table.stride + c] = 0;
  }
}

// forms [Heads] = q_g^T S q_g, S [dim, dim] symmetric: the squares of lanes x lanes on the diagonal once, those above it twice,
// so that little more than half of S is read, and once for all heads.
template <int Heads>
HWY_NOINLINE void quadratic_block(const float* q, const float* s, int dim, float* forms) {
  const Floats d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  hn::Vec<Floats> form[Heads];
  for (int g = 0; g < Heads; ++g) form[g] = hn::Zero(d);
  for (int row = 0; row < dim; row += lanes) {
    for (int column = row; column < dim; column += lanes) {
      hn::Vec<Floats> part[Heads];
      for (int g = 0; g < Heads; ++g) part[g] = hn::Zero(d);
      for (int i = row; i < row + lanes; ++i) {
        const auto x = hn::LoadU(d, s + static_cast<std::int64_t>(i) * dim + column);
        for (int g = 0; g < Heads; ++g) part[g] = hn::MulAdd(x, hn::Set(d, q[g * dim + i]), part[g]);
      }
      const auto weight = hn::Set(d, column == row ? 1.0f : 2.0f);
      for (int g = 0; g < Heads; ++g) {
        form[g] = hn::MulAdd(hn::Mul(part[g], weight), hn::LoadU(d, q + g * dim + column), form[g]);
      }
    }
  }
  for (int g = 0; g < Heads; ++g) forms[g] = hn::GetLane(hn::SumOfLanes(d, form[g]));
}

template <int Heads>
void quadratic_some(int heads, const float* q, const float* s, int dim, float* forms) {
  if (heads == Heads) return quadratic_block<Heads>(q, s, dim, forms);
  if constexpr (Heads > 1) quadratic_some<Heads - 1>(heads, q, s, dim, forms);
}

// The same for any group, in blocks of nearly equal size. dim is a multiple of 16.
void quadratic_forms(const float* q, const float* s, int group, int dim, float* forms) {
  constexpr int kHeads = 6;  // two sums each, a row and a broadcast: 14 of 16 registers
  const int blocks = (group + kHeads - 1) / kHeads;
  for (int b = 0; b < blocks; ++b) {
    const int first = group * b / blocks;
    quadratic_some<kHeads>(group * (b + 1) / blocks - first, q + first * dim, s, dim, forms + first);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "select/dispatch.h"

namespace tactic {

void half_variances(const Query& query, int kv_head, const HeadTable& table, float* h) {
  const int group = query.shape.group();
  const int dim = query.shape.head_dim;
  const float* q = query.q + static_cast<std::int64_t>(kv_head) * group * dim;
  const auto forms = TACTIC_PICK(quadratic_forms);
  const std::size_t parts = table.parts.size();
  float values[kMaxGroup];
  for (std::size_t p = 0; p < parts; ++p) {
    const HeadClusters& clusters = *table.parts[p].clusters;
    const bool flat = !(clusters.mean_spread > 0);  // every key is its centroid
    if (!flat) forms(q, clusters.covariance.data(), group, dim, values);
    const float factor = flat ? 0.0f : query.params.scale * query.params.scale / (2 * clusters.mean_spread);
    for (int g = 0; g < group; ++g) h[static_cast<std::size_t>(g) * parts + p] = flat ? 0.0f : factor * values[g];
  }
}

void estimate_masses(const HeadTable& table, int group, const float* logits, const float* h, const float* reference, float* mass,
                     float softcap) {
  TACTIC_PICK(estimate)(EstimateTask{&table, logits, h, reference, softcap, mass}, group, false);
}

void tail_weights(const EstimateTask& task, int group) { TACTIC_PICK(estimate)(task, group, true); }

}  // namespace tactic
#endif
