// The shapes that are measured, and K and V for them: one pool that every case cuts its layers from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "harness.h"
#include "settings.h"

namespace tactic::bench::gpu {

// Heads, batch and context of one measurement, K and V bf16 [layers][batch, context, kv_heads, head_dim].
struct Case {
  int q_heads = 32, kv_heads = 8, head_dim = 128;
  int batch = 1;
  std::int64_t context = 32768;
  int layers = 16;
  std::vector<std::uint16_t*> k, v;  // [layers]

  int group() const { return q_heads / kv_heads; }
  std::int64_t row_bytes() const { return head_dim * std::int64_t{2}; }
  std::int64_t layer_elements() const { return batch * context * kv_heads * head_dim; }
  double layer_bytes() const { return 4.0 * static_cast<double>(layer_elements()); }
  Row row(const std::string& what, const std::string& variant) const {
    Row r;
    r.what = what, r.variant = variant;
    r.q_heads = q_heads, r.kv_heads = kv_heads, r.head_dim = head_dim;
    r.batch = batch, r.context = context, r.layers = layers;
    return r;
  }
};

constexpr double kLeastBytes = 1.3e9;  // of K and V in one graph: 20 times the L2 cache
constexpr int kLeastLayers = 16;       // start-up hides behind so many

// bf16 elements of deviation 1, 2 * `bytes` / 4 of them for K, the rest for V.
class Pool {
 public:
  explicit Pool(double bytes);
  // Gives the case as many layers as it should have, fewer where the pool ends. Throws if not even one fits.
  void cut(Case& c) const;
  Case cut(const Heads& heads, const Cell& cell) const;
  std::uint16_t* data() const { return elements_.data(); }
  std::size_t size() const { return elements_.size(); }

 private:
  DeviceArray<std::uint16_t> elements_;
};

}  // namespace tactic::bench::gpu
