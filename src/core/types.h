// Words that every room shares: element types, pipelines, the shape of a layer's attention.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tactic {

// Element type of a caller's K or V rows. Data, not a template parameter: it comes through the C API.
enum class DType : std::int32_t { f32 = 0, f16 = 1, bf16 = 2 };

constexpr std::size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

// How tokens are chosen for a decode step.
enum class Method : std::int32_t {
  tactic = 0,  // query-metric clusters, spread estimate, joint choice, verify, tail (the default)
  paper = 1,   // the paper as published: L2 clusters, Algorithm 1, union over the group
  full = 2,    // every token: lossless
};

// Heads of one attention layer. Query heads [g * kv_head, g * kv_head + g) share KV head kv_head, g = group().
struct Shape {
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;    // of q and K
  int v_head_dim = 0;  // of V and the output; may differ from head_dim

  constexpr int group() const { return q_heads / kv_heads; }
};

constexpr int kMaxGroup = 16;
constexpr int kMaxHeadDim = 256;

// What a layer's attention computes besides softmax(q K^T * scale) V.
struct AttentionParams {
  float scale = 0;                     // multiplies q . k; 1 / sqrt(head_dim) in most models
  float softcap = 0;                   // > 0: logits become softcap * tanh(logit / softcap)
  const float* sink_logits = nullptr;  // [q_heads] or null: a logit per query head that joins the denominator only
};

}  // namespace tactic
