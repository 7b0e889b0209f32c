// A whole Llama-3.1-8B-shaped decoder's step: random weights, real shapes.
#pragma once

#include <cublas_v2.h>

#include <functional>
#include <memory>
#include <vector>

#include "core/device.h"
#include "harness.h"

namespace tactic::bench::gpu {

struct DecoderShape {
  int hidden = 4096, inner = 14336, q_heads = 32, kv_heads = 8, head_dim = 128, layers = 32, vocabulary = 128256;
  int qkv_rows() const { return (q_heads + 2 * kv_heads) * head_dim; }
};

// Attention of a layer over its cache: writes [batch, q_heads * head_dim] bf16.
using Attention = std::function<void(int layer, const DeviceOutput& output, cudaStream_t stream)>;

class Decoder {
 public:
  Decoder(const DecoderShape& shape, int batch);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Where a layer's new K and V rows go: behind the lengths[s] - 1 tokens before, in caches [batch, capacity, kv_heads,
  // head_dim].
  struct Cache {
    std::uint16_t *k = nullptr, *v = nullptr;
    std::int64_t capacity = 0;
  };
  // One token for each sequence: grows the lengths [batch] by one, then runs all layers, the output head and the greedy choice.
  // attention null: leaves attention out.
  void step(const std::vector<Cache>& caches, std::int32_t* lengths, const Attention& attention, cudaStream_t stream);
  double weight_bytes() const;
  const std::int32_t* tokens() const { return token_.data(); }

 private:
  void multiply(const std::uint16_t* weights, const std::uint16_t* in, std::uint16_t* out, int rows, int columns, bool add,
                cudaStream_t stream);

  DecoderShape shape_;
  int batch_;
  cublasHandle_t blas_ = nullptr;
  DeviceArray<std::uint16_t> weights_;  // layer by layer: qkv, output, gate and up, down; then the output head
  DeviceArray<std::uint16_t> stream_, normed_, qkv_, attended_, gate_up_, inner_, logits_;  // activations [batch, ...] bf16
  DeviceArray<std::int32_t> token_;
  DeviceArray<std::byte> workspace_;
};

}  // namespace tactic::bench::gpu
