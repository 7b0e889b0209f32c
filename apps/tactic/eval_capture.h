// The attention of one window under full attention: queries of every layer and step, K and V where the engine keeps them.
#pragma once

#include <vector>

#include "core/options.h"
#include "core/view.h"
#include "eval_engine.h"
#include "eval_windows.h"

namespace tactic::program {

struct LayerAttention {
  std::vector<float> q;         // [steps, q_heads, head_dim] post-RoPE, unscaled
  std::vector<float> prompt_q;  // [kWindow, q_heads, head_dim] of the prompt's last tokens
  std::vector<std::int32_t> cells;
  KvView kv;  // of all tokens; the engine's memory, valid until it decodes again
};

struct WindowAttention {
  Shape shape;
  AttentionParams params;
  Rotary rotary;
  std::int64_t prompt_tokens = 0;
  int steps = 0;
  int prompt_queries = 0;
  std::vector<LayerAttention> layers;

  std::int64_t row() const { return std::int64_t{shape.q_heads} * shape.head_dim; }
  KvView kv(int layer, std::int64_t tokens) const;
  const float* query(int layer, int step, int head) const;
};

// K and V of a traced row: the engine's memory.
KvView view_of(const tactic_llama_trace& row);

// Reads the window, then takes its steps under full attention. The view's memory is the engine's: use it before the next step.
// Throws Error(unsupported) for models whose attention is not plain softmax.
WindowAttention capture_window(EvalEngine& engine, const Window& window);

// exp(logit - largest) of tokens 0 .. tokens - 1 in double, [tokens]; their sum is returned.
double exact_weights(const WindowAttention& window, int layer, int step, int head, std::vector<double>& weights);

// The library's options as the plug-in would have them for an arm.
Options options_of(EvalEngine& engine, const eval::Arm& arm);

}  // namespace tactic::program
