// Reading one attention node of the engine's graph: what it computes, whether Tactic can, and how its queries were turned.
#pragma once

#include "cluster/cluster.h"
#include "core/types.h"
#include "core/view.h"
#include "engine.h"

namespace tactic::llama {

// FLASH_ATTN_EXT: q F32 [head_dim, rows, q_heads], k and v views of the cache [dim, cells, kv_heads], mask F16 [cells, rows],
// dst F32 [v_head_dim, q_heads, rows]; op_params: scale, max_bias, softcap, precision, n_kv_max.
struct AttentionNode {
  ggml_tensor* node = nullptr;
  const ggml_tensor* mask = nullptr;
  const float* sinks = nullptr;   // [q_heads] or null
  ggml_tensor* k_root = nullptr;  // the cache tensors that k and v are views of
  ggml_tensor* v_root = nullptr;
  Shape shape;
  AttentionParams params;  // sink_logits: null
  int rows = 0;
  std::int64_t cells = 0;       // of the views
  std::int64_t first_cell = 0;  // of the views, in the cache tensors (a stream's first)

  const float* query(int row, int head) const;  // [head_dim]
  float* output(int row) const;                 // [q_heads, v_head_dim]
  KvView view() const;                          // of the cells in cell order
};

// Null when Tactic can compute this node, else the reason not to.
const char* read_attention(ggml_tensor* node, AttentionNode& out);

// How the ROPE that feeds `q` turns; Layout::unknown where there is none, where another operation lies between (a model may turn
// before it normalises), or where its kind is not a plain one (multi-section).
Rotary rotary_of(const ggml_tensor* q, int head_dim);

}  // namespace tactic::llama
