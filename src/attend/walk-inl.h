// Online softmax over tiles of tokens: score a tile, rescale once, weigh V; prefetch the next tile meanwhile. Per target.
#if defined(TACTIC_ATTEND_WALK_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TACTIC_ATTEND_WALK_INL_H
#undef TACTIC_ATTEND_WALK_INL_H
#else
#define TACTIC_ATTEND_WALK_INL_H
#endif

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>

#include "attend/attend.h"
#include "attend/rows.h"
#include "attend/score-inl.h"
#include "attend/weigh-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tactic::attend::HWY_NAMESPACE {

struct ScoreTask {
  const float* q = nullptr;  // [heads, dim]
  std::size_t dim = 0;
  int heads = 0;
  const std::byte* const* rows = nullptr;   // [count, padded to a multiple of 4]
  const std::byte* const* ahead = nullptr;  // [same] rows to prefetch meanwhile, or null
  int count = 0;
  float* scores = nullptr;  // [heads, kTile]
};

template <DType kType>
void score_rows(const ScoreTask& task) {
  const std::size_t bytes = task.dim * size_of(kType);
  for (int t = 0; t < task.count; t += 4) {
    if (task.ahead != nullptr) {
      for (int i = 0; i < 4; ++i) {
        for (std::size_t byte = 0; byte < bytes; byte += 64) prefetch(task.ahead[t + i] + byte);
      }
    }
    score_tokens<kType>(task.q, task.dim, task.heads, task.rows + t, task.scores + t, kTile);
  }
}

template <DType kType>
void weigh_rows(const WeighTask& task, int heads) {
  weigh_tokens<kType>(task, heads);
}

using ScoreRows = void (*)(const ScoreTask&);
using WeighRows = void (*)(const WeighTask&, int);

inline ScoreRows score_rows_of(DType type) {
  return type == DType::f16 ? score_rows<DType::f16> : type == DType::bf16 ? score_rows<DType::bf16> : score_rows<DType::f32>;
}
inline WeighRows weigh_rows_of(DType type) {
  return type == DType::f16 ? weigh_rows<DType::f16> : type == DType::bf16 ? weigh_rows<DType::bf16> : weigh_rows<DType::f32>;
}

// Dot products [kTile] of one head become logits, -inf behind `count`. Returns their maximum.
inline float finish_scores(float* scores, int count, const AttentionParams& params) {
  const Floats d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const Vector low = hn::Set(d, -std::numeric_limits<float>::infinity());
  Vector maximum = low;
  for (int i = 0; i < count; i += lanes) {
    Vector s = hn::Mul(hn::LoadU(d, scores + i), hn::Set(d, params.scale));
    s = hn::MulAdd(s, hn::Zero(d), s);  // infinity, too, becomes NaN: such a head must not look sound behind a softcap
    if (params.softcap > 0) s = soften(s, params.softcap);
    if (i + lanes > count) s = hn::IfThenElse(hn::FirstN(d, static_cast<std::size_t>(count - i)), s, low);
    hn::StoreU(s, d, scores + i);
    maximum = hn::Max(maximum, s);
  }
  return hn::GetLane(hn::MaxOfLanes(d, maximum));
}

// Logits of one head become exp(logit - maximum), 0 behind `count`. Returns their sum.
inline float exponentiate(float* scores, int count, float maximum) {
  const Floats d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Vector sum = hn::Zero(d);
  for (int i = 0; i < count; i += lanes) {
    const Vector p = exp_nonpositive(hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, maximum)));
    hn::StoreU(p, d, scores + i);
    sum = hn::Add(sum, p);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

inline void rescale(float* output, std::size_t dim, float factor) {
  const Floats d;
  for (std::size_t i = 0; i < dim; i += hn::Lanes(d)) {
    hn::StoreU(hn::Mul(hn::LoadU(d, output + i), hn::Set(d, factor)), d, output + i);
  }
}

// Row pointers of one KV head's tile and of the rows to prefetch while it is worked on (null: nothing left).
struct HeadTile {
  int count = 0;
  const std::byte* const* k = nullptr;
  const std::byte* const* v = nullptr;
  const std::byte* const* k_ahead = nullptr;
  const std::byte* const* v_ahead = nullptr;
  // The rows to prefetch lie anywhere: each needs a translation of its address, and few of these are under way at a time.
  bool scattered = false;
};

// Adds tiles to the partial result of one KV head's group.
class GroupSoftmax {
 public:
  GroupSoftmax(const Query& query, const KvView& kv)
      : query_(query),
        group_(query.shape.group()),
        score_(score_rows_of(kv.k.type)),
        weigh_(weigh_rows_of(kv.v.type)),
        dim_(static_cast<std::size_t>(query.shape.head_dim)),
        v_dim_(static_cast<std::size_t>(query.shape.v_head_dim)),
        k_bytes_(dim_ * size_of(kv.k.type)),
        v_bytes_(v_dim_ * size_of(kv.v.type)),
        two_passes_(weigh_passes(group_, v_dim_) >= 2) {}

  void clear(const Partial& out, int heads) const {
    std::fill(out.maximum, out.maximum + heads, -std::numeric_limits<float>::infinity());
    std::fill(out.sum, out.sum + heads, 0.0f);
    std::fill(out.output, out.output + static_cast<std::size_t>(heads) * v_dim_, 0.0f);
  }

  // Logits of the tile, in scratch and, if asked, at logits[g * stride]. maxima [group] or null. ahead: K rows to prefetch or
  // null.
  void score(int kv_head, const HeadTile& tile, const std::byte* const* ahead, float* logits, std::int64_t stride,
             float* maxima) {
    ScoreTask task{
        query_.q + static_cast<std::size_t>(kv_head * group_) * dim_, dim_, group_, tile.k, ahead, tile.count, scores_};
    score_(task);
    for (int g = 0; g < group_; ++g) {
      const float maximum = finish_scores(scores_ + g * kTile, tile.count, query_.params);
      if (maxima != nullptr) maxima[g] = maximum;
      if (logits != nullptr) {
        std::memcpy(logits + g * stride, scores_ + g * kTile, static_cast<std::size_t>(tile.count) * sizeof(float));
      }
    }
  }

  // out: of this group.
  void add(int kv_head, const HeadTile& tile, const Partial& out, float* logits, std::int64_t stride) {
    float maxima[kMaxGroup];
    const bool spread = tile.scattered && two_passes_;
    score(kv_head, tile, spread ? nullptr : tile.k_ahead, logits, stride, maxima);
    for (int g = 0; g < group_; ++g) {
      const float before = out.maximum[g];
      const float now = maxima[g] > before ? maxima[g] : before;
      const float sum = exponentiate(scores_ + g * kTile, tile.count, now);
      if (now > before) {
        const float factor = hn::GetLane(exp_nonpositive(hn::Set(Floats(), before - now)));
        rescale(out.output + static_cast<std::size_t>(g) * v_dim_, v_dim_, factor);
        out.sum[g] *= factor;
        out.maximum[g] = now;
      }
      out.sum[g] += sum;
    }
    WeighTask task{scores_, kTile, tile.v, spread ? nullptr : tile.v_ahead, tile.count, out.output, v_dim_};
    if (spread) {  // a row a token of the pass, and not four at once: 6% less for a layer of 32/8 heads with d = 128
      task.whole[0] = tile.k_ahead;
      task.whole[1] = tile.v_ahead;
      task.whole_bytes[0] = k_bytes_;
      task.whole_bytes[1] = v_bytes_;
    }
    weigh_(task, group_);
  }

 private:
  const Query& query_;
  int group_;
  ScoreRows score_;
  WeighRows weigh_;
  std::size_t dim_;
  std::size_t v_dim_;
  std::size_t k_bytes_;
  std::size_t v_bytes_;
  bool two_passes_;
  alignas(64) float scores_[kMaxGroup * kTile];
};

inline void prefetch_rows(const std::byte* const* rows, int count, std::size_t bytes) {
  for (int t = 0; t < count; ++t) {
    for (std::size_t byte = 0; byte < bytes; byte += 64) prefetch(rows[t] + byte);
  }
}

// Calls visit(begin, tile) for the tiles of a list, the next tile's rows being asked for meanwhile: behind the last one those of
// the list that follows.
template <typename Visit>
HWY_INLINE void walk_list(const KvView& kv, int kv_head, const TokenList& list, bool with_v, const Neighbours& around,
                          const Visit& visit) {
  const std::size_t k_bytes = static_cast<std::size_t>(kv.k.dim) * size_of(kv.k.type);
  const std::size_t v_bytes = with_v ? static_cast<std::size_t>(kv.v.dim) * size_of(kv.v.type) : 0;
  RowTile tiles[2];
  locate(kv, kv_head, list, 0, tiles[0]);
  if (!around.asked) {
    prefetch_rows(tiles[0].k, tiles[0].count, k_bytes);
    prefetch_rows(tiles[0].v, tiles[0].count, v_bytes);
  }
  int now = 0;
  for (std::int64_t begin = 0; begin < list.count; begin += kTile) {
    RowTile& next = tiles[1 - now];
    const bool last = begin + kTile >= list.count;
    if (!last) {
      locate(kv, kv_head, list, begin + kTile, next);
    } else if (around.next != nullptr) {
      locate(kv, around.next_kv_head, *around.next, 0, next);
    } else {
      next.count = 0;
    }
    for (int t = next.count; t < kTile && next.count > 0; ++t) {  // a full tile asks for kTile rows
      next.k[t] = next.k[next.count - 1];
      next.v[t] = next.v[next.count - 1];
    }
    const bool more = next.count > 0;
    const int count = tiles[now].count;
    visit(begin, HeadTile{count, tiles[now].k, tiles[now].v, more ? next.k : nullptr, more ? next.v : nullptr,
                          (last && around.next != nullptr ? *around.next : list).ids != nullptr});
    if (last && next.count > count) {  // the rows that a short last tile has not asked for
      prefetch_rows(next.k + count, next.count - count, k_bytes);
      prefetch_rows(next.v + count, next.count - count, v_bytes);
    }
    now = 1 - now;
  }
}

inline void attend_group(const Query& query, const KvView& kv, int kv_head, const TokenList& list, const Partial& out,
                         float* logits, std::int64_t logit_stride, const Neighbours& around) {
  GroupSoftmax softmax(query, kv);
  softmax.clear(out, query.shape.group());
  walk_list(kv, kv_head, list, true, around, [&](std::int64_t begin, const HeadTile& tile) {
    softmax.add(kv_head, tile, out, logits == nullptr ? nullptr : logits + begin, logit_stride);
  });
}

inline void score_group(const Query& query, const KvView& kv, int kv_head, const TokenList& list, float* logits,
                        std::int64_t logit_stride) {
  GroupSoftmax softmax(query, kv);
  walk_list(kv, kv_head, list, false, {}, [&](std::int64_t begin, const HeadTile& tile) {
    softmax.score(kv_head, tile, tile.k_ahead, logits + begin, logit_stride, nullptr);
  });
}

// The part of `out` that belongs to a KV head.
inline Partial group_of(const Partial& out, const Shape& shape, int kv_head) {
  const int head = kv_head * shape.group();
  return {out.output + static_cast<std::size_t>(head) * static_cast<std::size_t>(shape.v_head_dim), out.maximum + head,
          out.sum + head};
}

// Rows of all KV heads of a token side by side: one walk over the tokens, a tile for every KV head in turn. The next tile is
// asked for in the order of its addresses: step t of head h takes row number h * kTile + t of [token, KV head].
inline void attend_side_by_side(const Query& query, const KvView& kv, const TokenList& list, const Partial& out) {
  GroupSoftmax softmax(query, kv);
  RowTile tiles[2];
  const std::byte* k[kTile];
  const std::byte* v[kTile];
  const std::byte* k_ahead[kTile];
  const std::byte* v_ahead[kTile];
  locate(kv, 0, list, 0, tiles[0]);
  // The rows of all KV heads of a token are one row of as many times the bytes.
  prefetch_rows(tiles[0].k, tiles[0].count, static_cast<std::size_t>(kv.kv_heads * kv.k.head_stride));
  prefetch_rows(tiles[0].v, tiles[0].count, static_cast<std::size_t>(kv.kv_heads * kv.v.head_stride));
  int now = 0;
  for (std::int64_t begin = 0; begin < list.count; begin += kTile) {
    const RowTile& tile = tiles[now];
    RowTile& next = tiles[1 - now];
    locate(kv, 0, list, begin + kTile, next);
    int token = 0;
    int head = 0;
    for (int h = 0; h < kv.kv_heads; ++h) {
      const int padded = (tile.count + 3) / 4 * 4;
      for (int t = 0; t < padded; ++t) {
        k[t] = tile.k[t] + h * kv.k.head_stride;
        v[t] = tile.v[t] + h * kv.v.head_stride;
      }
      for (int t = 0; t < kTile && next.count > 0; ++t) {
        k_ahead[t] = next.k[token] + head * kv.k.head_stride;
        v_ahead[t] = next.v[token] + head * kv.v.head_stride;
        if (++head == kv.kv_heads) {
          head = 0;
          token = std::min(token + 1, next.count - 1);
        }
      }
      const bool more = next.count > 0;
      softmax.add(h, {tile.count, k, v, more ? k_ahead : nullptr, more ? v_ahead : nullptr}, group_of(out, query.shape, h),
                  nullptr, 0);
    }
    now = 1 - now;
  }
}

inline bool side_by_side(const Rows& rows) {
  return rows.head_stride == rows.dim * static_cast<std::int64_t>(size_of(rows.type));
}

inline void attend_heads(const Query& query, const KvView& kv, const TokenList& list, const Partial& out) {
  GroupSoftmax(query, kv).clear(out, query.shape.q_heads);
  if (kv.kv_heads > 1 && side_by_side(kv.k) && side_by_side(kv.v)) return attend_side_by_side(query, kv, list, out);
  for (int h = 0; h < kv.kv_heads; ++h) attend_group(query, kv, h, list, group_of(out, query.shape, h), nullptr, 0, {});
}

}  // namespace tactic::attend::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // per-target guard
