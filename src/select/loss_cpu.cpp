// Choice by expected loss on vectors: one pass over the masses of a KV head.
#include <algorithm>
#include <bit>
#include <cmath>

#include "select/loss.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/loss_cpu.cpp"
// clang-format off
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "select/math-inl.h"
// clang-format on

#ifndef TACTIC_SELECT_LOSS_ONCE
#define TACTIC_SELECT_LOSS_ONCE
namespace tactic {
namespace {

struct LossTask {
  const HeadTable* table;
  int group;
  const float* mass;         // [G, stride]
  const float* ripple;       // [G, stride]
  float inverse[kMaxGroup];  // 1 / total
  float loss_per_row;
  std::uint8_t* chosen;  // [stride]
};

constexpr float kRippleExponent = 5.0f;
constexpr float kRippleFloor = 0.01f;

}  // namespace
}  // namespace tactic
#endif

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// One head's ripple over table columns [first, last). Columns behind `last` up to a whole vector are written, too.
void ripple_row(const HeadTable& table, const float* logits, float h, float softcap, int first, int last, float* ripple) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto one = hn::Set(d, 1.0f);
  const auto row = [&](auto spread, auto logit, auto size) HWY_ATTR {
    auto variance = hn::Mul(spread, hn::Set(d, 2 * h));
    if (softcap > 0) {
      const auto ratio = hn::Mul(logit, hn::Set(d, 1.0f / softcap));
      const auto slope = hn::NegMulAdd(ratio, ratio, one);
      variance = hn::Mul(variance, hn::Mul(slope, slope));
    }
    const auto scatter = hn::Sub(exponential(d, hn::Min(variance, hn::Set(d, kRippleExponent))), one);
    return hn::Min(one, hn::Add(hn::Div(scatter, hn::Max(size, one)), hn::Set(d, kRippleFloor)));
  };
  int c = first;
  for (; c + lanes <= last; c += lanes) {
    hn::StoreU(row(hn::LoadU(d, table.spread.data() + c), hn::LoadU(d, logits + c), hn::LoadU(d, table.size.data() + c)), d,
               ripple + c);
  }
  if (c < last) {
    const auto mask = hn::FirstN(d, static_cast<std::size_t>(last - c));
    hn::BlendedStore(row(hn::MaskedLoad(mask, d, table.spread.data() + c), hn::MaskedLoad(mask, d, logits + c),
                         hn::MaskedLoad(mask, d, table.size.data() + c)),
                     mask, d, ripple + c);
  }
}

// Numbers of the clusters that are worth their rows and not chosen yet, to list; they are chosen then. Returns how many. The
// chosen clusters' shares of the heads' totals are added to covered [G].
int worthy(const LossTask& task, std::int32_t* list, float* covered) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(di)> du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const HeadTable& table = *task.table;
  hn::Vec<decltype(d)> sum[kMaxGroup];
  for (int g = 0; g < task.group; ++g) sum[g] = hn::Zero(d);
  int found = 0;
  for (int c = 0; c < table.stride; c += lanes) {  // the padding has no size, mass or ripple: 0 > 0 takes none
    const auto share = [&](int g) HWY_ATTR {
      return hn::Mul(hn::LoadU(d, task.mass + static_cast<std::int64_t>(g) * table.stride + c), hn::Set(d, task.inverse[g]));
    };
    auto loss = hn::Zero(d);
    for (int g = 0; g < task.group; ++g) {
      const auto m = share(g);
      loss = hn::MulAdd(hn::Mul(m, m), hn::LoadU(d, task.ripple + static_cast<std::int64_t>(g) * table.stride + c), loss);
    }
    const auto price = hn::Mul(hn::LoadU(d, table.size.data() + c), hn::Set(d, task.loss_per_row));
    const auto before = hn::RebindMask(d, hn::Ne(hn::PromoteTo(di, hn::LoadU(du, task.chosen + c)), hn::Zero(di)));
    const auto added = hn::AndNot(before, hn::Gt(loss, price));
    const auto now = hn::Or(before, added);
    if (hn::AllFalse(d, now)) continue;
    for (int g = 0; g < task.group; ++g) sum[g] = hn::Add(sum[g], hn::IfThenElseZero(now, share(g)));
    std::uint8_t bits[8] = {};
    hn::StoreMaskBits(d, added, bits);
    for (auto rest = static_cast<std::uint32_t>(bits[0] | (bits[1] << 8)); rest != 0; rest &= rest - 1) {
      list[found] = c + std::countr_zero(rest);
      task.chosen[list[found++]] = 1;
    }
  }
  for (int g = 0; g < task.group; ++g) covered[g] += hn::GetLane(hn::SumOfLanes(d, sum[g]));
  return found;
}

// sum over a row
float row_sum(const float* row, int stride) {
  const hn::ScalableTag<float> d;
  auto sum = hn::Zero(d);
  for (int c = 0; c < stride; c += static_cast<int>(hn::Lanes(d))) sum = hn::Add(sum, hn::LoadU(d, row + c));
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "select/dispatch.h"

namespace tactic {

void representation_ripple(const HeadTable& table, int group, const float* logits, const float* h, float* ripple, float softcap) {
  const std::size_t parts = table.parts.size();
  const auto kernel = TACTIC_PICK(ripple_row);
  for (int g = 0; g < group; ++g) {
    float* row = ripple + static_cast<std::int64_t>(g) * table.stride;
    if (h == nullptr) std::fill_n(row, table.count, 1.0f);
    for (std::size_t p = 0; h != nullptr && p < parts; ++p) {
      const int first = table.parts[p].first;
      kernel(table, logits + static_cast<std::int64_t>(g) * table.stride, h[static_cast<std::size_t>(g) * parts + p], softcap,
             first, first + table.parts[p].clusters->count, row);
    }
    std::fill(row + table.count, row + table.stride, 0.0f);
  }
}

int choose_by_loss(const HeadTable& table, int group, const float* mass, const float* ripple, const float* fixed,
                   float loss_per_row, std::uint8_t* chosen, std::int32_t* list, float* covered) {
  LossTask task{&table, group, mass, ripple, {}, loss_per_row, chosen};
  const auto sum = TACTIC_PICK(row_sum);
  bool sound = true;
  for (int g = 0; g < group; ++g) {
    const float total = fixed[g] + sum(mass + static_cast<std::int64_t>(g) * table.stride, table.stride);
    sound = sound && std::isfinite(total) && total > 0;
    task.inverse[g] = 1 / total;
    covered[g] = fixed[g] * task.inverse[g];
  }
  if (sound) return TACTIC_PICK(worthy)(task, list, covered);
  int added = 0;
  for (std::int32_t c = 0; c < table.count; ++c) {
    if (chosen[c] != 0) continue;
    chosen[c] = 1;
    list[added++] = c;
  }
  std::fill_n(covered, group, 1.0f);
  return added;
}

float loss_per_row(float mass) {
  // Squared error of the output that the whole layer is worth at this mass, spread over kTypicalRows rows.
  constexpr float kErrorPerMissingMass = 0.1f;  // docs/results/loss.md, The price of P
  constexpr float kTypicalRows = 200.0f;
  const float error = kErrorPerMissingMass * (1 - mass);
  return error * error / kTypicalRows;
}

}  // namespace tactic
#endif  // HWY_ONCE
