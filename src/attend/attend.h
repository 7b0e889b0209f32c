// Attention over chosen tokens: scores, weighted sum of V, log-sum-exp (base e), merge of partial results (paper 4.6).
#pragma once

#include <cstdint>

#include "core/types.h"
#include "core/view.h"

namespace tactic {

// One query row of a layer: q [q_heads, head_dim], f32, post-RoPE, unscaled; heads contiguous.
struct Query {
  const float* q = nullptr;
  Shape shape;
  AttentionParams params;
};

// Tokens to attend: `ids[0 .. count)` in any order, or, when ids is null, first .. first + count - 1.
struct TokenList {
  const std::int32_t* ids = nullptr;
  std::int64_t first = 0;
  std::int64_t count = 0;
};

// Unnormalised attention of one query head over some tokens:
//   maximum m, sum l = sum exp(s_i - m), output o [v_head_dim] = sum exp(s_i - m) v_i; no tokens: m = -inf, l = 0, o = 0.
// s_i is the natural-log-domain logit: scale, then softcap applied.
struct Partial {
  float* output = nullptr;   // [heads, v_head_dim]
  float* maximum = nullptr;  // [heads]
  float* sum = nullptr;      // [heads]
};

// What surrounds a list in the work of a thread, so that its first rows are on their way before its turn comes.
struct Neighbours {
  bool asked = false;               // the list was `next` of this thread's call before
  const TokenList* next = nullptr;  // the list that this thread attends to afterwards, or null
  int next_kv_head = 0;
};

// The `group` query heads of one KV head over a list. out: heads = group. Overwrites out.
// logits: null, or [group, logit_stride]: s_i of token i of the list goes to logits[g * logit_stride + i].
// Bytes: count * (K row + V row), read once for the group.
void attend_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, const Partial& out, float* logits,
                 std::int64_t logit_stride, const Neighbours& around = {});

// All query heads over the same list (dense attention, recent tokens): the rows of all KV heads of a token lie side by
// side in most caches, so tokens are walked once for all heads. out: heads = q_heads. Overwrites out.
void attend_all(const Query& query, const KvView& kv, const TokenList& list, const Partial& out);

// Logits alone (no V): [group, logit_stride] as above. Bytes: count K rows.
void score_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, float* logits,
                std::int64_t logit_stride);

// Adds `part` to `into` (both [heads]): rescales to the larger maximum.
void merge(const Partial& into, const Partial& part, int heads, int v_head_dim);

// o / (l + sink term) for each head: writes out [heads, v_head_dim] and, if not null, lse [heads] (base e, with the sink).
// sink_logits: [heads] or null. A head that saw nothing gets zeros and lse = -inf.
void normalise(const Partial& part, int heads, int v_head_dim, const float* sink_logits, float* out, float* lse);

namespace reference {
// The same in scalar code and double sums.
void attend_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, const Partial& out, float* logits,
                 std::int64_t logit_stride);
void attend_all(const Query& query, const KvView& kv, const TokenList& list, const Partial& out);
void score_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, float* logits,
                std::int64_t logit_stride);
}  // namespace reference

}  // namespace tactic
