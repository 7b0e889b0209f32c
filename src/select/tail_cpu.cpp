// Correction by what was attended, and the tail: the heaviest dropped clusters by their mean V (estimation.md 2, steps 3 and 5).
#include "select/loss.h"
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/tail_cpu.cpp"
#include <algorithm>
#include <bit>
#include <cmath>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "select/cut-inl.h"
#include "select/tail_task.h"

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kFaintShare = 0.1;   // of the chosen estimate, judged by its faintest clusters
constexpr double kLeastFactor = 1.0;  // estimation.md 2: factors below 1 lost successes
constexpr double kMostFactor = 4.0;   // against a stray cluster

void factors(const FactorTask& task) {
  const HeadTable& table = *task.table;
  const int count = static_cast<int>(task.chosen.size());
  const std::int64_t stride = count + kCutPadding;
  task.scratch->floats.resize(static_cast<std::size_t>(4 * stride));
  task.scratch->ints.resize(static_cast<std::size_t>(2 * stride));
  float* estimated = task.scratch->floats.data();
  float* exact = estimated + stride;
  CutTask cut;
  cut.key = task.scratch->ints.data();
  cut.count = count;
  cut.rows = 2;
  cut.needed = 1;
  cut.row[0] = estimated;
  cut.row[1] = exact;
  cut.work_key = task.scratch->ints.data() + stride;
  cut.work = exact + stride;
  cut.work_stride = stride;
  for (int g = 0; g < task.group; ++g) {
    const std::int64_t row = static_cast<std::int64_t>(g) * table.stride;
    double sum = 0;
    for (int i = 0; i < count; ++i) {
      const int c = task.chosen[static_cast<std::size_t>(i)];
      estimated[i] = task.mass[row + c];
      exact[i] = task.exact[row + c];
      sum += static_cast<double>(estimated[i]);
      const float density = estimated[i] / table.size[c];
      task.scratch->ints[static_cast<std::size_t>(i)] =
          0x7f800000 - (std::bit_cast<std::int32_t>(density) & 0x7fffffff);  // faintest first
    }
    task.factor[g] = 1;
    if (!(sum > 0) || !std::isfinite(sum)) continue;
    cut.need[0] = kFaintShare * sum;
    const Cut found = find_cut(cut);
    const bool alone = !(found.before[0] > 0);  // the first cluster by itself holds the share
    const double ratio = alone ? found.sum[1] / found.sum[0] : found.before[1] / found.before[0];
    task.factor[g] = static_cast<float>(std::clamp(ratio, kLeastFactor, kMostFactor));
  }
}

// To task.column: the clusters that are not chosen and, as far as `bound` tells, worth their mean V. Returns how many; behind
// them column 0, up to a whole vector.
int list_dropped(const HeaviestTask& task) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(di)> du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const HeadTable& table = *task.table;
  const bool priced = task.bound != nullptr && task.price > 0;
  const auto price = hn::Set(d, task.price * 0.999f);  // bound and weight are rounded differently
  const auto most = hn::Set(d, 1e15f);                 // its square is finite
  int n = 0;
  for (int c = 0; c < table.stride; c += lanes) {
    auto keep = hn::And(hn::RebindMask(d, hn::Eq(hn::PromoteTo(di, hn::LoadU(du, task.chosen + c)), hn::Zero(di))),
                        hn::Gt(hn::LoadU(d, table.size.data() + c), hn::Zero(d)));
    if (priced) {
      auto loss = hn::Zero(d);
      for (int g = 0; g < task.group; ++g) {
        auto share =
            hn::Mul(hn::LoadU(d, task.bound + static_cast<std::int64_t>(g) * table.stride + c), hn::Set(d, 1 / task.total[g]));
        share = hn::IfThenElse(hn::Gt(share, most), most, hn::IfThenElseZero(hn::Eq(share, share), share));  // NaN: nothing
        loss = hn::MulAdd(share, share, loss);
      }
      keep = hn::And(keep, hn::Gt(loss, price));
    }
    if (hn::AllFalse(d, keep)) continue;
    const auto mask = hn::RebindMask(di, keep);
    hn::StoreU(hn::Compress(hn::Iota(di, c), mask), di, task.column + n);
    n += static_cast<int>(hn::CountTrue(di, mask));
  }
  hn::StoreU(hn::Zero(di), di, task.column + n);
  return n;
}

// task.key [count] = a dropped cluster's largest share over the heads, 0 where it is not worth its mean V. Returns how many are
// not 0.
int weigh_dropped(const HeaviestTask& task) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto largest_weight = hn::Set(d, 3e38f);
  int candidates = 0;
  for (int i = 0; i < task.count; i += lanes) {
    auto best = hn::Zero(d);
    auto loss = hn::Zero(d);
    for (int g = 0; g < task.group; ++g) {
      auto share = hn::Mul(hn::LoadU(d, task.weight + g * task.stride + i), hn::Set(d, 1 / task.total[g]));
      share = hn::IfThenElseZero(hn::Le(share, largest_weight), share);  // NaN and infinity count as nothing
      best = hn::Max(best, share);
      loss = hn::MulAdd(share, share, loss);
    }
    if (task.price > 0) best = hn::IfThenElseZero(hn::Gt(loss, hn::Set(d, task.price)), best);
    if (i + lanes > task.count) best = hn::IfThenElseZero(hn::FirstN(d, static_cast<std::size_t>(task.count - i)), best);
    hn::StoreU(best, d, task.key + i);
    candidates += static_cast<int>(hn::CountTrue(d, hn::Gt(best, hn::Zero(d))));
  }
  return candidates;
}

// Places in task.column of the heaviest dropped clusters, ascending, to task.work_key. Returns how many.
int heaviest(const HeaviestTask& task) {
  CutTask cut;
  Cut found;
  found.key = 0;  // all
  const auto* key = reinterpret_cast<const std::int32_t*>(task.key);
  if (weigh_dropped(task) > task.limit) {
    std::fill_n(task.ones, task.count, 1.0f);
    cut.key = key;
    cut.count = task.count;
    cut.rows = cut.needed = 1;
    cut.row[0] = task.ones;
    cut.need[0] = task.limit;
    cut.work_key = task.work_key;
    cut.work = task.work;
    cut.work_stride = task.stride;
    found = find_cut(cut);
  }
  int n = 0;
  int ties = found.ties;
  for (int i = 0; i < task.count; ++i) {
    if (key[i] < found.key || key[i] == 0) continue;
    if (key[i] == found.key && ties-- <= 0) continue;
    task.work_key[n++] = i;
  }
  return n;
}

// output_g += sum_i weight_ig row_i for `Heads` heads from g.
template <int Heads>
HWY_NOINLINE void add_rows(const AddTask& task, int g) {
  constexpr int kVectors = 2;  // with 6 heads 12 sums, 2 rows and a weight: 15 of 16 registers
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::int8_t, decltype(di)> d8;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  for (int i = 0; i < task.dim; i += kVectors * kLanes) {  // the last pass may hold one vector alone: dims are multiples of 16
    const int second = i + kLanes < task.dim ? i + kLanes : i;
    hn::Vec<decltype(d)> sum[Heads][kVectors];
    for (auto& s : sum) s[0] = s[1] = hn::Zero(d);
    for (int n = 0; n < task.count; ++n) {
      const auto a = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, task.row[n] + i)));
      const auto b = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, task.row[n] + second)));
      for (int j = 0; j < Heads; ++j) {
        const auto w = hn::Set(d, task.weight[static_cast<std::int64_t>(n) * task.group + g + j]);
        sum[j][0] = hn::MulAdd(w, a, sum[j][0]);
        sum[j][1] = hn::MulAdd(w, b, sum[j][1]);
      }
    }
    for (int j = 0; j < Heads; ++j) {
      float* out = task.output + static_cast<std::int64_t>(g + j) * task.dim;
      hn::StoreU(hn::Add(hn::LoadU(d, out + i), sum[j][0]), d, out + i);
      if (second != i) hn::StoreU(hn::Add(hn::LoadU(d, out + second), sum[j][1]), d, out + second);
    }
  }
}

template <int Heads>
void add_some(int heads, const AddTask& task, int g) {
  if constexpr (Heads > 0) {
    if (heads == Heads) return add_rows<Heads>(task, g);
    add_some<Heads - 1>(heads, task, g);
  }
}

void add_means(const AddTask& task) {
  constexpr int kHeads = 6;
  const int passes = (task.group + kHeads - 1) / kHeads;
  for (int p = 0; p < passes; ++p) {
    const int g = task.group * p / passes;
    add_some<kHeads>(task.group * (p + 1) / passes - g, task, g);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "select/dispatch.h"
#include "select/estimate_task.h"

namespace tactic {
namespace {

struct MeanV {
  const std::int8_t* row;
  const float* scale;
  int dim;
};
MeanV mean_v(const HeadTable& table, int column) {
  const HeadTable::Part& part = table.parts[static_cast<std::size_t>(table.part_of[static_cast<std::size_t>(column)])];
  const HeadClusters& clusters = *part.clusters;
  const int dim = part.owner->v_head_dim;
  const std::int64_t c = column - part.first;
  return {clusters.mean_v.data() + c * dim, clusters.mean_v_scale.data() + c, dim};
}

}  // namespace

void tail_factors(const HeadTable& table, int group, const float* mass, const float* exact, std::span<const std::int32_t> chosen,
                  float* factor, SelectScratch& scratch) {
  TACTIC_PICK(factors)({&table, group, mass, exact, chosen, factor, &scratch});
}

int choose_tail(const HeadTable& table, int group, const float* logits, const float* h, const float* reference,
                const float* total, const std::uint8_t* chosen, int limit, std::int32_t* list, float* weights,
                SelectScratch& scratch, float softcap, float loss_per_row, const float* bound) {
  if (limit <= 0 || table.count == 0) return 0;
  const std::size_t stride = static_cast<std::size_t>(table.stride) + kCutPadding;
  scratch.floats.resize((static_cast<std::size_t>(group) + 3) * stride);
  scratch.ints.resize(2 * stride);
  float* weight = scratch.floats.data();
  float* key = weight + static_cast<std::size_t>(group) * stride;
  HeaviestTask task{&table,
                    group,
                    total,
                    chosen,
                    bound,
                    limit,
                    represented_price(loss_per_row),
                    scratch.ints.data(),
                    0,
                    weight,
                    static_cast<std::int64_t>(stride),
                    key,
                    key + stride,
                    key + 2 * stride,
                    scratch.ints.data() + stride};
  task.count = TACTIC_PICK(list_dropped)(task);
  tail_weights({&table, logits, h, reference, softcap, nullptr}, group, task.column, task.count, weight, task.stride);
  const int n = TACTIC_PICK(heaviest)(task);
  for (int i = 0; i < n; ++i) {
    const int place = task.work_key[i];
    list[i] = task.column[place];
    for (int g = 0; g < group; ++g) weights[static_cast<std::int64_t>(g) * limit + i] = weight[g * task.stride + place];
    const MeanV mean = mean_v(table, list[i]);
    for (int byte = 0; byte < mean.dim; byte += 64) __builtin_prefetch(mean.row + byte, 0, 2);
    __builtin_prefetch(mean.scale, 0, 2);
  }
  return n;
}

void add_tail(const HeadTable& table, int group, int v_head_dim, std::span<const std::int32_t> list, const float* weights,
              int weight_stride, const Partial& out) {
  constexpr int kBatch = 64;  // clusters whose pointers and weights fit the stack
  const std::int8_t* row[kBatch];
  float scaled[kBatch * kMaxGroup];
  const auto add = TACTIC_PICK(add_means);
  for (std::size_t first = 0; first < list.size(); first += kBatch) {
    const int count = static_cast<int>(std::min<std::size_t>(kBatch, list.size() - first));
    for (int n = 0; n < count; ++n) {
      const std::size_t at = first + static_cast<std::size_t>(n);
      const MeanV mean = mean_v(table, list[at]);
      row[n] = mean.row;
      for (int g = 0; g < group; ++g) {
        const float w = weights[g * static_cast<std::int64_t>(weight_stride) + static_cast<std::int64_t>(at)];
        scaled[n * group + g] = w * *mean.scale;
        out.sum[g] += w;
      }
    }
    add({row, scaled, count, group, v_head_dim, out.output});
  }
}

}  // namespace tactic
#endif
