// Eligibility of attention nodes; rotary frequencies from the ROPE node (GPT-NeoX and interleaved forms, frequency factors,
// YaRN as in "YaRN: Efficient Context Window Extension of Large Language Models", eq. 15-23).
#include "graph.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <optional>

namespace tactic::llama {
namespace {

std::optional<DType> element_type(const ggml_tensor* t) {
  if (t->type == GGML_TYPE_F32) return DType::f32;
  if (t->type == GGML_TYPE_F16) return DType::f16;
  if (t->type == GGML_TYPE_BF16) return DType::bf16;
  return std::nullopt;
}

float float_parameter(const ggml_tensor* node, int i) {
  float value = 0;
  std::memcpy(&value, node->op_params + i, sizeof value);
  return value;
}

// A stride as the kernels want it: signed.
std::int64_t stride(const ggml_tensor* t, int i) { return static_cast<std::int64_t>(t->nb[i]); }

std::int64_t cell_of_view(const ggml_tensor* view) {
  return static_cast<std::int64_t>(view->view_offs) / stride(view->view_src, 1);
}

const char* check_cache(const ggml_tensor* k, const ggml_tensor* v) {
  if (k->view_src == nullptr || v->view_src == nullptr) return "K and V are no views of a cache";
  if (k->view_src == v->view_src) return "K and V share a tensor (MLA)";
  if (!element_type(k) || !element_type(v)) return "K or V is quantised";
  if (k->ne[3] != 1) return "several streams in one batch";
  if (k->view_src->buffer != v->view_src->buffer) return "K and V lie in different buffers";
  for (const ggml_tensor* t : {k, v}) {
    const ggml_tensor* root = t->view_src;
    if (root->buffer == nullptr || !ggml_backend_buffer_is_host(root->buffer)) return "K and V are not in host memory";
    if (t->nb[0] != ggml_type_size(t->type) || t->nb[1] != root->nb[1] || t->view_offs % root->nb[1] != 0) {
      return "K or V is laid out in an unknown way (transposed V: flash attention is off)";
    }
  }
  if (cell_of_view(k) != cell_of_view(v)) return "K and V start at different cells";
  return nullptr;
}

struct Yarn {
  float low, high;  // pairs between which the mix goes from extrapolation to interpolation
};

Yarn yarn_limits(int dims, int original_context, float base, float beta_fast, float beta_slow) {
  const auto pair_at = [&](float turns) {
    return static_cast<float>(dims) * std::log(static_cast<float>(original_context) / (turns * 2 * std::numbers::pi_v<float>)) /
           (2 * std::log(base));
  };
  return {std::max(0.0f, std::floor(pair_at(beta_fast))), std::min(static_cast<float>(dims - 1), std::ceil(pair_at(beta_slow)))};
}

}  // namespace

const float* AttentionNode::query(int row, int head) const {
  const ggml_tensor* q = node->src[0];
  const auto* base = static_cast<const std::byte*>(q->data);
  return reinterpret_cast<const float*>(base + row * stride(q, 1) + head * stride(q, 2));
}

float* AttentionNode::output(int row) const {
  return reinterpret_cast<float*>(static_cast<std::byte*>(node->data) + row * stride(node, 2));
}

KvView AttentionNode::view() const {
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  const auto rows_of = [](const ggml_tensor* t) {
    return Rows{static_cast<const std::byte*>(t->data),
                *element_type(t),
                static_cast<int>(t->ne[0]),
                stride(t, 1),
                stride(t, 2),
                stride(t, 1)};
  };
  return {rows_of(k), rows_of(v), shape.kv_heads, cells, nullptr, 1};
}

const char* read_attention(ggml_tensor* node, AttentionNode& out) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
  if (const char* reason = check_cache(k, v)) return reason;
  if (q->type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32) return "queries or output are not F32";
  if (q->nb[0] != sizeof(float) || node->nb[0] != sizeof(float) ||
      node->nb[1] != static_cast<std::size_t>(v->ne[0]) * sizeof(float)) {
    return "queries or output are laid out in an unknown way";
  }
  if (q->ne[3] != 1) return "several streams in one batch";
  if (mask == nullptr || mask->type != GGML_TYPE_F16) return "no F16 mask";
  if (mask->op != GGML_OP_NONE || mask->view_src != nullptr || mask->ne[2] != 1 || mask->ne[3] != 1)
    return "the mask is computed";
  if (mask->buffer == nullptr || !ggml_backend_buffer_is_host(mask->buffer)) return "the mask is not in host memory";
  if (float_parameter(node, 1) > 0) return "ALiBi";
  if (node->op_params[4] > 0) return "the engine attends sparsely itself (n_kv_max)";
  if (sinks != nullptr && (sinks->type != GGML_TYPE_F32 || sinks->op != GGML_OP_NONE)) return "sinks of an unknown kind";
  if (k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2] != 0 || q->ne[0] != k->ne[0]) return "head counts do not fit";

  out.node = node;
  out.mask = mask;
  out.sinks = sinks != nullptr ? static_cast<const float*>(sinks->data) : nullptr;
  out.k_root = k->view_src;
  out.v_root = v->view_src;
  out.shape = {static_cast<int>(q->ne[2]), static_cast<int>(k->ne[2]), static_cast<int>(k->ne[0]), static_cast<int>(v->ne[0])};
  out.params.scale = float_parameter(node, 0);
  out.params.softcap = float_parameter(node, 2);
  out.rows = static_cast<int>(q->ne[1]);
  out.cells = k->ne[1];
  out.first_cell = cell_of_view(k);
  return nullptr;
}

Rotary rotary_of(const ggml_tensor* q, int head_dim) {
  const ggml_tensor* node = q;
  const auto passes = [](const ggml_tensor* t) {
    return t->op == ops().view || t->op == ops().reshape || t->op == ops().permute || t->op == ops().cont || t->op == ops().scale;
  };
  while (node != nullptr && static_cast<int>(node->op) != ops().rope && passes(node)) node = node->src[0];
  if (node == nullptr) return {};
  if (static_cast<int>(node->op) != ops().rope) return {};

  const int dims = node->op_params[1];
  const int mode = node->op_params[2];
  if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) return {};
  // op_params[15]: first dimension turned; the metric's pairs start at 0.
  if (dims < 2 || dims > head_dim || node->op_params[15] != 0) return {};
  const float base = float_parameter(node, 5), scale = float_parameter(node, 6), extension = float_parameter(node, 7);
  const Yarn yarn = yarn_limits(dims, node->op_params[4], base, float_parameter(node, 9), float_parameter(node, 10));
  const ggml_tensor* factors = node->src[2];
  if (factors != nullptr && (factors->buffer == nullptr || !ggml_backend_buffer_is_host(factors->buffer))) return {};
  const auto* factor = factors != nullptr ? static_cast<const float*>(factors->data) : nullptr;

  Rotary rotary;
  rotary.layout = mode == GGML_ROPE_TYPE_NORMAL ? Rotary::Layout::interleaved : Rotary::Layout::halves;
  for (int pair = 0; pair < dims / 2; ++pair) {
    float frequency = std::pow(base, -2.0f * static_cast<float>(pair) / static_cast<float>(dims));
    if (factor != nullptr) frequency /= factor[pair];
    float mix = 0;  // share of extrapolation
    if (extension != 0) {
      const float ramp = (static_cast<float>(pair) - yarn.low) / std::max(0.001f, yarn.high - yarn.low);
      mix = (1 - std::clamp(ramp, 0.0f, 1.0f)) * extension;
    }
    rotary.frequency.push_back(frequency * (scale * (1 - mix) + mix));
  }
  return rotary;
}

}  // namespace tactic::llama
