// Choice of clusters for the query heads of a KV head at once: the lambda rule of estimation.md 2 and 5, without a sort.
//
// Minimise the tokens of the set while every head g has its target: a covering problem, whose dual has a price per head.
// Clusters are taken in descending order of sum_g price_g mass_gc / size_c up to where the last head is content; heads that
// then have more than they need get cheaper, four times, and the smallest set stays.
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/choose_cpu.cpp"
#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "select/choose_task.h"
#include "select/cut-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::RebindToSigned<Floats>;

constexpr int kRounds = 4;  // estimation.md 2; one gets most of the gain
// A head's price falls by this power of its dropped over its allowed mass. Tokens over the covering bound after 4 rounds on
// log-normal masses (250 and 1000 clusters, 2 to 7 heads): 3.7% with 1, 2.7% with 2, 2.7% with 3; with prune() 1.8%.
constexpr double kSteepness = 2;
constexpr float kLeastPrice = 1e-3f;  // a price falls at most to this share in a round
constexpr float kLargestPrice = 1e30f;

// Lanes whose cluster is chosen already.
HWY_INLINE auto chosen_lanes(const std::uint8_t* chosen, int c) {
  const Floats df;
  const Ints di;
  const hn::Rebind<std::uint8_t, Ints> du;
  return hn::RebindMask(df, hn::Ne(hn::PromoteTo(di, hn::LoadU(du, chosen + c)), hn::Zero(di)));
}

// The clusters that may be added, packed to the front, with the rows of the heads that still lack mass.
struct Candidates {
  int count = 0;
  int heads = 0;
  int head[kMaxGroup];     // numbers of those heads
  double need[kMaxGroup];  // mass they lack
  const float* mass[kMaxGroup];
  float* inverse_size = nullptr;
  float* size = nullptr;
  std::int32_t* column = nullptr;
  std::int32_t* key = nullptr;       // of the order in hand
  std::int32_t* best_key = nullptr;  // of the smallest set so far
  std::int32_t* work_key = nullptr;
  float* work = nullptr;
  std::int64_t stride = 0;
};

void collect(const ChooseTask& task, float* keep, float* rows, Candidates& out) {
  const Floats df;
  const Ints di;
  const int lanes = static_cast<int>(hn::Lanes(df));
  const HeadTable& table = *task.table;
  for (int c = 0; c < table.stride; c += lanes) {
    auto largest = hn::Zero(df);
    for (int a = 0; a < out.heads; ++a) {
      largest = hn::Max(largest, hn::LoadU(df, task.mass + static_cast<std::int64_t>(out.head[a]) * table.stride + c));
    }
    const auto free = hn::AndNot(chosen_lanes(task.chosen, c), hn::Gt(largest, hn::Zero(df)));
    hn::StoreU(hn::IfThenElseZero(free, hn::Div(hn::Set(df, 1.0f), hn::LoadU(df, table.size.data() + c))), df, keep + c);
  }
  const auto wanted = [&](int c) HWY_ATTR { return hn::Gt(hn::LoadU(df, keep + c), hn::Zero(df)); };
  for (int a = 0; a < out.heads; ++a) {
    float* row = rows + a * out.stride;
    pack(df, task.mass + static_cast<std::int64_t>(out.head[a]) * table.stride, table.count, row, wanted);
    out.mass[a] = row;
  }
  pack(df, table.size.data(), table.count, out.size, wanted);
  out.count = pack(df, keep, table.count, out.inverse_size, wanted);
  int n = 0;
  for (int c = 0; c < table.count; c += lanes) {
    auto mask = wanted(c);
    if (c + lanes > table.count) mask = hn::And(mask, hn::FirstN(df, static_cast<std::size_t>(table.count - c)));
    hn::StoreU(hn::Compress(hn::Iota(di, c), hn::RebindMask(di, mask)), di, out.column + n);
    n += static_cast<int>(hn::CountTrue(df, mask));
  }
}

// key = bits of sum_a price_a mass_a / size
void score(const Candidates& in, const float* price) {
  const Floats df;
  const Ints di;
  const int lanes = static_cast<int>(hn::Lanes(df));
  for (int i = 0; i < in.count; i += lanes) {
    auto sum = hn::Zero(df);
    for (int a = 0; a < in.heads; ++a) sum = hn::MulAdd(hn::Set(df, price[a]), hn::LoadU(df, in.mass[a] + i), sum);
    hn::StoreU(hn::BitCast(di, hn::Mul(sum, hn::LoadU(df, in.inverse_size + i))), di, in.key + i);
  }
}

CutTask cut_task(const Candidates& in, int first, int heads, bool sizes) {
  CutTask task;
  task.key = in.key;
  task.count = in.count;
  task.needed = heads;
  task.rows = heads + (sizes ? 1 : 0);
  for (int a = 0; a < heads; ++a) {
    task.row[a] = in.mass[first + a];
    task.need[a] = in.need[first + a];
  }
  if (sizes) task.row[heads] = in.size;
  task.work_key = in.work_key;
  task.work = in.work;
  task.work_stride = in.stride;
  return task;
}

// The cut of candidate head a's own density order.
Cut own_cut(const Candidates& in, int a) {
  float alone[kMaxGroup] = {};
  alone[a] = 1;
  score(in, alone);
  return find_cut(cut_task(in, a, 1, false));
}

// Marks the prefix as chosen; columns already marked in this call (another head's) are left out of the list.
int take(const ChooseTask& task, const Candidates& in, const std::int32_t* key, const Cut& cut, int added) {
  const Ints di;
  const int lanes = static_cast<int>(hn::Lanes(di));
  const auto below = hn::Set(di, cut.key - 1);
  int ties = cut.ties;
  for (int i = 0; i < in.count; i += lanes) {
    auto mask = hn::Gt(hn::LoadU(di, key + i), below);
    if (i + lanes > in.count) mask = hn::And(mask, hn::FirstN(di, static_cast<std::size_t>(in.count - i)));
    std::uint8_t bytes[8] = {};
    hn::StoreMaskBits(di, mask, bytes);
    for (auto bits = static_cast<std::uint32_t>(bytes[0] | (bytes[1] << 8)); bits != 0; bits &= bits - 1) {
      const int at = i + std::countr_zero(bits);
      if (key[at] == cut.key && ties-- <= 0) continue;
      const std::int32_t column = in.column[at];
      if (task.chosen[column] != 0) continue;
      task.chosen[column] = 1;
      if (task.list != nullptr) task.list[added] = column;
      ++added;
    }
  }
  return added;
}

// Takes those clusters near the threshold out of the prefix again without which every head still has what it needs: the last
// clusters of the order were taken for one head. Their key becomes 0, which no threshold admits.
void prune(const Candidates& in, Cut& cut) {
  constexpr int kMost = 64;
  constexpr float kReach = 1.5f;  // scores up to this many thresholds are looked at
  const std::int32_t highest = std::bit_cast<std::int32_t>(kReach * std::bit_cast<float>(cut.key));
  int faint[kMost];
  int count = 0;
  int ties = cut.ties;
  for (int i = 0; i < in.count && count < kMost; ++i) {
    if (in.best_key[i] < cut.key || in.best_key[i] > highest) continue;
    if (in.best_key[i] == cut.key && ties-- <= 0) continue;
    int at = count++;
    for (; at > 0 && in.best_key[faint[at - 1]] > in.best_key[i]; --at) faint[at] = faint[at - 1];
    faint[at] = i;
  }
  for (int n = 0; n < count; ++n) {
    const int i = faint[n];
    bool spare = true;
    for (int a = 0; a < in.heads; ++a) spare = spare && cut.sum[a] - static_cast<double>(in.mass[a][i]) >= in.need[a];
    if (!spare) continue;
    for (int a = 0; a < in.heads; ++a) cut.sum[a] -= static_cast<double>(in.mass[a][i]);
    if (in.best_key[i] == cut.key) --cut.ties;
    in.best_key[i] = 0;
  }
}

// The lambda rule over more than one head.
int take_jointly(const ChooseTask& task, Candidates& in, const double* total, const double* dropped_all) {
  float price[kMaxGroup];
  for (int a = 0; a < in.heads; ++a) {
    const float threshold = std::bit_cast<float>(own_cut(in, a).key);
    price[a] = std::min(1 / std::max(threshold, 1e-37f), kLargestPrice);
  }
  Cut best;
  double fewest = 0;
  for (int round = 0; round < kRounds; ++round) {
    score(in, price);
    const Cut cut = find_cut(cut_task(in, 0, in.heads, true));
    if (round == 0 || cut.sum[in.heads] < fewest) {
      fewest = cut.sum[in.heads];
      best = cut;
      std::swap(in.key, in.best_key);
    }
    for (int a = 0; a < in.heads; ++a) {
      const double missing = (dropped_all[a] - cut.sum[a]) / total[a];
      const double allowed = 1 - static_cast<double>(task.target[in.head[a]]);
      const double excess = std::clamp(missing / std::max(allowed, 1e-9), static_cast<double>(kLeastPrice), 1.0);
      price[a] *= static_cast<float>(std::pow(excess, kSteepness));
      price[a] = std::max(price[a], 1e-37f);
    }
  }
  prune(in, best);
  return take(task, in, in.best_key, best, 0);
}

int take_everything(const ChooseTask& task) {
  int added = 0;
  for (int c = 0; c < task.table->count; ++c) {
    if (task.chosen[c] != 0) continue;
    task.chosen[c] = 1;
    if (task.list != nullptr) task.list[added] = c;
    ++added;
  }
  for (int g = 0; g < task.group && task.covered != nullptr; ++g) task.covered[g] = 1;
  return added;
}

int choose_clusters(const ChooseTask& task) {
  const HeadTable& table = *task.table;
  const std::int64_t stride = table.stride + kCutPadding;
  SelectScratch& scratch = *task.scratch;
  scratch.floats.resize(static_cast<std::size_t>(stride) * (2 * task.group + 4));
  scratch.ints.resize(static_cast<std::size_t>(stride) * 4);
  Candidates in;
  float* keep = scratch.floats.data();
  in.inverse_size = keep + stride;
  in.size = keep + 2 * stride;
  float* rows = keep + 3 * stride;
  in.work = rows + task.group * stride;
  in.column = scratch.ints.data();
  in.key = in.column + stride;
  in.best_key = in.key + stride;
  in.work_key = in.best_key + stride;
  in.stride = stride;

  double total[kMaxGroup];
  double active_total[kMaxGroup];
  double dropped[kMaxGroup];
  for (int g = 0; g < task.group; ++g) {
    const float* mass = task.mass + static_cast<std::int64_t>(g) * table.stride;
    const double free = masked_sum(mass, table.count, [&](int c) HWY_ATTR { return hn::Not(chosen_lanes(task.chosen, c)); });
    const double held = static_cast<double>(task.fixed[g]) +
                        masked_sum(mass, table.count, [&](int c) HWY_ATTR { return chosen_lanes(task.chosen, c); });
    total[g] = held + free;
    if (!(total[g] > 0) || !std::isfinite(total[g])) return take_everything(task);
    const double need = static_cast<double>(task.target[g]) * total[g] - held;
    if (!(need > 0)) continue;
    in.head[in.heads] = g;
    in.need[in.heads] = need;
    active_total[in.heads] = total[g];
    dropped[in.heads++] = free;
  }
  int added = 0;
  if (in.heads > 0) {
    collect(task, keep, rows, in);
    if (in.heads == 1 || !task.joint) {
      for (int a = 0; a < in.heads; ++a) {
        const Cut cut = own_cut(in, a);
        added = take(task, in, in.key, cut, added);
      }
    } else {
      added = take_jointly(task, in, active_total, dropped);
    }
  }
  for (int g = 0; g < task.group && task.covered != nullptr; ++g) {
    const float* mass = task.mass + static_cast<std::int64_t>(g) * table.stride;
    const double held = masked_sum(mass, table.count, [&](int c) HWY_ATTR { return chosen_lanes(task.chosen, c); });
    task.covered[g] = static_cast<float>((static_cast<double>(task.fixed[g]) + held) / total[g]);
  }
  return added;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "select/dispatch.h"

namespace tactic {

int choose(const HeadTable& table, int group, const float* mass, const float* fixed, const float* target, bool joint,
           std::uint8_t* chosen, std::int32_t* list, float* covered, SelectScratch& scratch) {
  return TACTIC_PICK(choose_clusters)({&table, group, mass, fixed, target, joint, chosen, list, covered, &scratch});
}

}  // namespace tactic
#endif
