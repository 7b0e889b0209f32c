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

// h spread, with what softcap does to it.
template <class V>
HWY_INLINE V half_variance(Floats d, V raw, V logit, const EstimateTask& task) {
  if (task.softcap > 0) {  // d logit / d raw = 1 - (logit / cap)^2
    const V ratio = hn::Mul(logit, hn::Set(d, 1.0f / task.softcap));
    const V slope = hn::NegMulAdd(ratio, ratio, hn::Set(d, 1.0f));
    raw = hn::Mul(raw, hn::Mul(slope, slope));
  }
  return raw;
}

// At most kLargestExponent; NaN stays NaN, which hn::Min does not promise.
template <class V>
HWY_INLINE V bounded(Floats d, V x) {
  const V limit = hn::Set(d, kLargestExponent);
  return hn::IfThenElse(hn::Gt(x, limit), limit, x);
}

// raw: h spread
template <class V>
HWY_INLINE V log_normal(Floats d, V size, V raw, V logit, const EstimateTask& task, float reference) {
  const V x = hn::Add(logit, hn::Sub(half_variance(d, raw, logit, task), hn::Set(d, reference)));
  return hn::Mul(size, exponential(d, bounded(d, x)));
}

// size exp(x + log cosh s), s = sqrt(2 h spread): log cosh s = s + log((1 + exp(-2 s)) / 2)
template <class V>
HWY_INLINE V two_point(Floats d, V size, V raw, V logit, const EstimateTask& task, float reference) {
  const V half = half_variance(d, raw, logit, task);
  const V s = hn::Sqrt(hn::Max(hn::Add(half, half), hn::Zero(d)));
  const V x = hn::Add(logit, hn::Sub(s, hn::Set(d, reference)));
  const V e = exponential(d, bounded(d, x));
  const V other = exponential(d, hn::Mul(s, hn::Set(d, -2.0f)));
  return hn::Mul(hn::Mul(size, hn::Set(d, 0.5f)), hn::MulAdd(e, other, e));
}

void estimate_row(const EstimateTask& task, int g, const HeadTable::Part& part, float h) {
  const Floats d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const HeadTable& table = *task.table;
  const float* logits = task.logits + static_cast<std::int64_t>(g) * table.stride;
  float* mass = task.mass + static_cast<std::int64_t>(g) * table.stride;
  const float reference = task.reference[g];
  const auto at = [&](auto size, auto spread, auto logit)
                      HWY_ATTR { return log_normal(d, size, hn::Mul(spread, hn::Set(d, h)), logit, task, reference); };
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

void estimate(const EstimateTask& task, int group) {
  const HeadTable& table = *task.table;
  const std::size_t parts = table.parts.size();
  for (int g = 0; g < group; ++g) {
    for (std::size_t p = 0; p < parts; ++p) {
      const float h = task.h == nullptr ? 0.0f : task.h[static_cast<std::size_t>(g) * parts + p];
      estimate_row(task, g, table.parts[p], h);
    }
    for (int c = table.count; c < table.stride; ++c) task.mass[static_cast<std::int64_t>(g) * table.stride + c] = 0;
  }
}

void weigh_columns(const EstimateTask& task, int group, const std::int32_t* columns, int count, float* weight,
                   std::int64_t stride) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const HeadTable& table = *task.table;
  const auto parts = static_cast<std::int64_t>(table.parts.size());
  for (int i = 0; i < count; i += lanes) {
    const auto c = hn::LoadU(di, columns + i);
    const auto size = hn::GatherIndex(d, table.size.data(), c);
    const auto spread = hn::GatherIndex(d, table.spread.data(), c);
    const auto part = parts == 1 ? hn::Zero(di) : hn::GatherIndex(di, table.part_of.data(), c);
    for (int g = 0; g < group; ++g) {
      const auto logit = hn::GatherIndex(d, task.logits + g * static_cast<std::int64_t>(table.stride), c);
      const auto h = task.h == nullptr ? hn::Zero(d) : hn::GatherIndex(d, task.h + g * parts, part);
      hn::StoreU(two_point(d, size, hn::Mul(spread, h), logit, task, task.reference[g]), d, weight + g * stride + i);
    }
  }
}

// forms [Heads] = q_g^T S q_g, S in the squares of HeadTable::covariance16: those on the diagonal once, those above it twice,
// read once for all heads.
template <int Heads>
HWY_NOINLINE void quadratic_block(const float* q, const std::uint16_t* s, int dim, float* forms) {
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
  constexpr int kSide = HeadTable::kCovarianceSide;
  const auto* from = reinterpret_cast<const hwy::float16_t*>(s);
  hn::Vec<Floats> form[Heads];
  for (int g = 0; g < Heads; ++g) form[g] = hn::Zero(d);
  for (int row = 0; row < dim; row += kSide) {
    for (int column = row; column < dim; column += kSide, from += kSide * kSide) {
      const auto weight = hn::Set(d, column == row ? 1.0f : 2.0f);
      for (int at = 0; at < kSide; at += kLanes) {
        hn::Vec<Floats> part[Heads];
        for (int g = 0; g < Heads; ++g) part[g] = hn::Zero(d);
        for (int i = 0; i < kSide; ++i) {
          const auto x = hn::PromoteTo(d, hn::LoadU(dh, from + i * kSide + at));
          for (int g = 0; g < Heads; ++g) part[g] = hn::MulAdd(x, hn::Set(d, q[g * dim + row + i]), part[g]);
        }
        for (int g = 0; g < Heads; ++g) {
          form[g] = hn::MulAdd(hn::Mul(part[g], weight), hn::LoadU(d, q + g * dim + column + at), form[g]);
        }
      }
    }
  }
  for (int g = 0; g < Heads; ++g) forms[g] = hn::GetLane(hn::SumOfLanes(d, form[g]));
}

template <int Heads>
void quadratic_some(int heads, const float* q, const std::uint16_t* s, int dim, float* forms) {
  if (heads == Heads) return quadratic_block<Heads>(q, s, dim, forms);
  if constexpr (Heads > 1) quadratic_some<Heads - 1>(heads, q, s, dim, forms);
}

// The same for any group, in blocks of nearly equal size. dim is a multiple of 16.
void quadratic_forms(const float* q, const std::uint16_t* s, int group, int dim, float* forms) {
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
    const bool flat = !(table.covariance_unit[p] > 0);  // every key is its centroid
    if (!flat) forms(q, table.covariance16.data() + static_cast<std::int64_t>(p) * covariance_size(dim), group, dim, values);
    const float factor = query.params.scale * query.params.scale * table.covariance_unit[p] / 2;
    for (int g = 0; g < group; ++g) h[static_cast<std::size_t>(g) * parts + p] = flat ? 0.0f : factor * values[g];
  }
}

void estimate_masses(const HeadTable& table, int group, const float* logits, const float* h, const float* reference, float* mass,
                     float softcap) {
  TACTIC_PICK(estimate)(EstimateTask{&table, logits, h, reference, softcap, mass}, group);
}

void tail_weights(const EstimateTask& task, int group, const std::int32_t* columns, int count, float* weight,
                  std::int64_t stride) {
  TACTIC_PICK(weigh_columns)(task, group, columns, count, weight, stride);
}

}  // namespace tactic
#endif
