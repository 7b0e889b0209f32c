// find_cut: bisects the range of keys that holds the cut and keeps only that range's elements, so that the work is about twice
// one pass over all of them, and at most 31 passes. Per-target: no ordinary include guard.
#if defined(TACTIC_SELECT_CUT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_SELECT_CUT_INL_H
#undef TACTIC_SELECT_CUT_INL_H
#else
#define TACTIC_SELECT_CUT_INL_H
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "select/cut.h"

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Sums of f32 lanes go to double this often, which keeps their rounding below 64 * 2^-24.
constexpr int kSumBlock = 64;  // vectors

// Sum over i < count of values[i] where keep(i) -> mask; values are padded.
template <class Keep>
HWY_INLINE double masked_sum(const float* values, int count, Keep keep) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  double total = 0;
  for (int block = 0; block < count; block += kSumBlock * lanes) {
    const int end = std::min(count, block + kSumBlock * lanes);
    auto a = hn::Zero(d);
    auto b = hn::Zero(d);
    int i = block;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      a = hn::Add(a, hn::IfThenElseZero(keep(i), hn::LoadU(d, values + i)));
      b = hn::Add(b, hn::IfThenElseZero(keep(i + lanes), hn::LoadU(d, values + i + lanes)));
    }
    for (; i < end; i += lanes) {
      const auto mask = hn::And(keep(i), hn::FirstN(d, static_cast<std::size_t>(end - i)));
      a = hn::Add(a, hn::IfThenElseZero(mask, hn::LoadU(d, values + i)));
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(a, b))));
  }
  return total;
}

// Packs values[i], i < count, where keep(i), to the front of out (may be values) and returns how many.
template <class D, class T, class Keep>
HWY_INLINE int pack(D d, const T* values, int count, T* out, Keep keep) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  int n = 0;
  for (int i = 0; i < count; i += lanes) {
    auto mask = keep(i);
    if (i + lanes > count) mask = hn::And(mask, hn::RebindMask(d, hn::FirstN(d, static_cast<std::size_t>(count - i))));
    hn::StoreU(hn::Compress(hn::LoadU(d, values + i), mask), d, out + n);  // lanes past n are overwritten or padding
    n += static_cast<int>(hn::CountTrue(d, mask));
  }
  return n;
}

struct KeyRange {
  std::int32_t low;
  std::int32_t high;
};

HWY_INLINE KeyRange key_range(const std::int32_t* key, int count) {
  const hn::ScalableTag<std::int32_t> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto low = hn::Set(d, 0x7fffffff);
  auto high = hn::Zero(d);
  int i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto k = hn::LoadU(d, key + i);
    low = hn::Min(low, k);
    high = hn::Max(high, k);
  }
  KeyRange range{hn::GetLane(hn::MinOfLanes(d, low)), hn::GetLane(hn::MaxOfLanes(d, high))};
  for (; i < count; ++i) range = {std::min(range.low, key[i]), std::max(range.high, key[i])};
  return range;
}

// Takes the elements that are left one by one, in descending order of key and ascending order of place.
HWY_INLINE void take_singly(const CutTask& task, const std::int32_t* key, const float* const* row, int count, bool equal,
                            Cut& cut) {
  constexpr int kMost = 64;
  int order[kMost];
  for (int i = 0; i < count && !equal; ++i) {
    int at = i;
    for (; at > 0 && key[order[at - 1]] < key[i]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  for (int i = 0; i < count; ++i) {
    const int e = equal ? i : order[i];
    cut.ties = key[e] == cut.key ? cut.ties + 1 : 1;
    cut.key = key[e];
    ++cut.taken;
    bool reached = true;
    for (int r = 0; r < task.rows; ++r) {
      cut.before[r] = cut.sum[r];
      cut.sum[r] += static_cast<double>(row[r][e]);
      reached = reached && (r >= task.needed || cut.sum[r] >= task.need[r]);
    }
    if (reached) return;
  }
}

// Takes at least one element; all of them when the needs are out of reach.
HWY_NOINLINE Cut find_cut(const CutTask& task) {
  constexpr int kFew = 24;  // elements that are cheaper to sort than to bisect
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  Cut cut;
  int count = task.count;
  if (count == 0) return cut;
  const std::int32_t* key = task.key;
  const float* row[kCutRows];
  std::copy(task.row, task.row + task.rows, row);
  KeyRange range = key_range(key, count);
  while (count > kFew && range.low < range.high) {
    const auto below_pivot = hn::Set(di, range.low + (range.high - range.low - 1) / 2);  // the pivot less 1: low <= it < high
    double above[kCutRows];
    bool inside = true;  // the cut lies in the upper part
    for (int r = 0; r < task.rows; ++r) {
      above[r] = masked_sum(row[r], count,
                            [&](int i) HWY_ATTR { return hn::RebindMask(df, hn::Gt(hn::LoadU(di, key + i), below_pivot)); });
      inside = inside && (r >= task.needed || cut.sum[r] + above[r] >= task.need[r]);
    }
    const auto keep = [&](int i) HWY_ATTR {
      const auto upper = hn::Gt(hn::LoadU(di, key + i), below_pivot);
      return inside ? upper : hn::Not(upper);
    };
    for (int r = 0; r < task.rows; ++r) {
      float* to = task.work + r * task.work_stride;
      pack(df, row[r], count, to, [&](int i) HWY_ATTR { return hn::RebindMask(df, keep(i)); });
      row[r] = to;
      if (!inside) cut.sum[r] += above[r];
    }
    const int left = pack(di, key, count, task.work_key, keep);
    if (!inside) cut.taken += count - left;
    key = task.work_key;
    count = left;
    range = key_range(key, count);
  }
  take_singly(task, key, row, count, range.low == range.high, cut);
  return cut;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();
#endif
