// Rank: logits of the centroids for the G query heads of a KV head. Two kernels: int8 centroids times 16-bit q in integer
// arithmetic, and f16 centroids in f32.
//
// Per 16 clusters and 2 dims (int8): 32 bytes, one widening load and one multiply-add of pairs per head; sums lie in lanes,
// one cluster each (HeadTable::packed8). Sums fit: 256 dims * 127 * 32767 < 2^31.
#include "select/select.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "select/rank_cpu.cpp"
#include <algorithm>
#include <cmath>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "select/math-inl.h"
#include "select/rank_task.h"

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Heads of one pass: with two vectors of columns they need 2 * kHeads sums, 2 rows and a broadcast in 32 or 16 registers.
constexpr int kHeads = HWY_TARGET == HWY_AVX3 ? 8 : 6;
// Columns that are asked for ahead of their turn: 96 of 128 dims take about 0.5 us, three trips to the memory.
constexpr int kAheadColumns = 96;

template <class D, class V>
HWY_INLINE void finish(D d, V sum, const RankTask& task, int g, int c) {
  V x = hn::Mul(sum, hn::Set(d, task.unit[g]));
  if (task.softcap > 0) x = soft_cap(d, x, task.softcap);
  hn::StoreU(x, d, task.logits + g * task.stride + c);
}

#if HWY_TARGET == HWY_SCALAR  // one lane: no pairs
template <int Heads, int Vectors>
HWY_INLINE void rank8(const RankTask& task, int g, int c) {
  const int dim = task.table->head_dim;
  for (int v = 0; v < Vectors; ++v) {
    const int column = c + v;
    const std::int8_t* from = task.table->packed8.data() + static_cast<std::int64_t>(column / kPackedBlock) * dim * kPackedBlock +
                              column % kPackedBlock * 2;
    for (int j = g; j < g + Heads; ++j) {
      const std::int32_t* pairs = task.pairs + static_cast<std::int64_t>(j) * (dim / 2);
      std::int32_t sum = 0;
      for (int i = 0; i < dim / 2; ++i) {
        const std::int8_t* pair = from + i * 2 * kPackedBlock;
        sum += pair[0] * static_cast<std::int16_t>(pairs[i] & 0xffff) + pair[1] * (pairs[i] >> 16);
      }
      const hn::ScalableTag<float> df;
      finish(df, hn::Set(df, static_cast<float>(sum) * task.table->centroid_scale[column]), task, j, column);
    }
  }
}
#else
// sum + a_even * b_even + a_odd * b_odd
template <class D32, class V16, class V32>
HWY_INLINE V32 add_pairs(D32 d32, V16 a, V16 b, V32 sum) {
#if HWY_ARCH_X86
  V32 unused = hn::Zero(d32);
  return hn::ReorderWidenMulAccumulate(d32, a, b, sum, unused);  // pmaddwd
#else
  const V32 a32 = hn::BitCast(d32, a);
  const V32 b32 = hn::BitCast(d32, b);
  const V32 even = hn::Mul(hn::ShiftRight<16>(hn::ShiftLeft<16>(a32)), hn::ShiftRight<16>(hn::ShiftLeft<16>(b32)));
  return hn::Add(hn::Add(sum, even), hn::Mul(hn::ShiftRight<16>(a32), hn::ShiftRight<16>(b32)));
#endif
}

// Columns c .. c + Vectors * lanes - 1 for heads g .. g + Heads - 1.
template <int Heads, int Vectors>
HWY_INLINE void rank8(const RankTask& task, int g, int c) {
  const hn::ScalableTag<std::int16_t> d16;
  const hn::RebindToSigned<hn::ScalableTag<float> > d32;
  const hn::ScalableTag<float> df;
  const hn::Rebind<std::int8_t, decltype(d16)> d8;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(df));
  const int dim = task.table->head_dim;
  hn::Vec<decltype(d32)> sum[Heads][Vectors];
  const std::int8_t* from[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    const int column = c + v * kLanes;
    from[v] = task.table->packed8.data() + static_cast<std::int64_t>(column / kPackedBlock) * dim * kPackedBlock +
              column % kPackedBlock * 2;
    for (int j = 0; j < Heads; ++j) sum[j][v] = hn::Zero(d32);
  }
  // A line, two rows, of columns to come: a block ends where the hardware's prefetcher does, at 2 or 4 KiB. Far enough that the
  // memory answers in time, and into the L2 (see attend/convert-inl.h).
  const int ahead = kAheadColumns * dim;
  const std::int32_t* pairs = task.pairs + static_cast<std::int64_t>(g) * (dim / 2);
  for (int i = 0; i < dim / 2; ++i) {
    __builtin_prefetch(from[i % Vectors] + i / 2 * 4 * kPackedBlock + ahead, 0, 2);
    hn::Vec<decltype(d16)> row[Vectors];
    for (int v = 0; v < Vectors; ++v) row[v] = hn::PromoteTo(d16, hn::LoadU(d8, from[v] + i * 2 * kPackedBlock));
    for (int j = 0; j < Heads; ++j) {
      const auto q = hn::BitCast(d16, hn::Set(d32, pairs[j * (dim / 2) + i]));
      for (int v = 0; v < Vectors; ++v) sum[j][v] = add_pairs(d32, row[v], q, sum[j][v]);
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    const auto scale = hn::LoadU(df, task.table->centroid_scale.data() + c + v * kLanes);
    for (int j = 0; j < Heads; ++j) finish(df, hn::Mul(hn::ConvertTo(df, sum[j][v]), scale), task, g + j, c + v * kLanes);
  }
}

#endif

template <int Heads, int Vectors>
HWY_INLINE void rank16(const RankTask& task, int g, int c) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(df));
  const int dim = task.table->head_dim;
  hn::Vec<decltype(df)> sum[Heads][Vectors];
  const hwy::float16_t* from[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    const int column = c + v * kLanes;
    from[v] = reinterpret_cast<const hwy::float16_t*>(task.table->packed16.data()) +
              static_cast<std::int64_t>(column / kPackedBlock) * dim * kPackedBlock + column % kPackedBlock;
    for (int j = 0; j < Heads; ++j) sum[j][v] = hn::Zero(df);
  }
  const float* q = task.q + static_cast<std::int64_t>(g) * dim;
  for (int i = 0; i < dim; ++i) {
    hn::Vec<decltype(df)> row[Vectors];
    for (int v = 0; v < Vectors; ++v) row[v] = hn::PromoteTo(df, hn::LoadU(dh, from[v] + i * kPackedBlock));
    for (int j = 0; j < Heads; ++j) {
      const auto element = hn::Set(df, q[j * dim + i]);
      for (int v = 0; v < Vectors; ++v) sum[j][v] = hn::MulAdd(row[v], element, sum[j][v]);
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    for (int j = 0; j < Heads; ++j) finish(df, sum[j][v], task, g + j, c + v * kLanes);
  }
}

// Columns [first, last), multiples of 16, for `Heads` heads from g.
template <int Heads>
HWY_NOINLINE void rank_columns(const RankTask& task, int g, int first, int last) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  const bool integer = task.table->packed16.empty();
  int c = first;
  for (; c + 2 * kLanes <= last; c += 2 * kLanes) integer ? rank8<Heads, 2>(task, g, c) : rank16<Heads, 2>(task, g, c);
  for (; c < last; c += kLanes) integer ? rank8<Heads, 1>(task, g, c) : rank16<Heads, 1>(task, g, c);
}

template <int Heads>
void rank_some(int heads, const RankTask& task, int g, int first, int last) {
  if constexpr (Heads > 0) {
    if (heads == Heads) return rank_columns<Heads>(task, g, first, last);
    rank_some<Heads - 1>(heads, task, g, first, last);
  }
}

// All heads over columns [first, last), multiples of 16.
void rank_heads(const RankTask& task, int group, int first, int last) {
  const int passes = (group + kHeads - 1) / kHeads;
  constexpr int kTile = 128;  // columns that stay in L1 between the passes: 128 * 128 dims = 16 KiB
  for (int c = first; c < last; c += kTile) {
    for (int p = 0; p < passes; ++p) {
      const int g = group * p / passes;
      rank_some<kHeads>(group * (p + 1) / passes - g, task, g, c, std::min(last, c + kTile));
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "select/dispatch.h"

namespace tactic {
namespace {

// q of one head to 16 bits, in pairs; returns the value of one unit, NaN if q is not finite.
float quantise(const float* q, int dim, std::int32_t* pairs) {
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < dim; ++i) {
    largest = std::max(largest, std::fabs(q[i]));
    finite = finite && std::isfinite(q[i]);
  }
  const float inverse = finite && largest > 0 ? 32767.0f / largest : 0.0f;
  for (int i = 0; i < dim / 2; ++i) {
    const auto low = static_cast<std::int32_t>(std::lrintf((finite ? q[2 * i] : 0) * inverse));
    const auto high = static_cast<std::int32_t>(std::lrintf((finite ? q[2 * i + 1] : 0) * inverse));
    pairs[i] = static_cast<std::int32_t>((static_cast<std::uint32_t>(high) << 16) | (static_cast<std::uint32_t>(low) & 0xffffu));
  }
  return finite ? largest / 32767.0f : std::nanf("");
}

}  // namespace

void score_centroids(const Query& query, int kv_head, const HeadTable& table, int first, int last, float* logits) {
  if (first >= last) return;
  const int group = query.shape.group();
  const int dim = query.shape.head_dim;
  alignas(64) std::int32_t pairs[kMaxGroup * kMaxHeadDim / 2];
  float unit[kMaxGroup];
  const float* q = query.q + static_cast<std::int64_t>(kv_head) * group * dim;
  const bool integer = table.packed16.empty();
  for (int g = 0; g < group; ++g) {
    unit[g] = query.params.scale * (integer ? quantise(q + g * dim, dim, pairs + g * (dim / 2)) : 1.0f);
  }
  const auto rank = TACTIC_PICK(rank_heads);
  RankTask task{&table, pairs, q, unit, query.params.softcap, logits, table.stride};
  const int begin = (first + kPackedBlock - 1) / kPackedBlock * kPackedBlock;
  const int end = last == table.count ? table.stride : last / kPackedBlock * kPackedBlock;
  if (begin < end) rank(task, group, begin, end);

  // Columns of blocks that the range cuts: others may be writing the rest of them.
  alignas(64) float edge[kMaxGroup * kPackedBlock];
  const auto copy_edge = [&](int from, int to) {
    const int block = from / kPackedBlock * kPackedBlock;
    task.logits = edge - block;
    task.stride = kPackedBlock;
    rank(task, group, block, block + kPackedBlock);
    for (int g = 0; g < group; ++g) {
      for (int c = from; c < to; ++c)
        logits[g * static_cast<std::int64_t>(table.stride) + c] = edge[g * kPackedBlock + c - block];
    }
  };
  if (first < begin) copy_edge(first, std::min(begin, last));
  if (end < last && end >= begin) copy_edge(end, last);
}

}  // namespace tactic
#endif
