// Random K and V on the device.
#include <cmath>
#include <stdexcept>

#include "cases.h"

namespace tactic::bench::gpu {
namespace {

// A sum of uniforms, near enough to normal for a kernel that only reads; bf16 by truncation.
__global__ void fill_normal(std::uint16_t* out, std::size_t count) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count; i += step) {
    const float x = (uniform(1, i) + uniform(2, i) + uniform(3, i) - 1.5f) * 2.0f;
    out[i] = static_cast<std::uint16_t>(__float_as_uint(x) >> 16);
  }
}

}  // namespace

Pool::Pool(double bytes) : elements_(static_cast<std::size_t>(bytes / 2)) {
  fill_normal<<<4096, 256>>>(elements_.data(), elements_.size());
  check(cudaDeviceSynchronize(), "fill the pool");
}

void Pool::cut(Case& c) const {
  const auto half = static_cast<std::int64_t>(elements_.size() / 2);
  const auto wanted = std::max<std::int64_t>(kLeastLayers, static_cast<std::int64_t>(std::ceil(kLeastBytes / c.layer_bytes())));
  c.layers = static_cast<int>(std::min(wanted, half / c.layer_elements()));
  if (c.layers == 0) throw std::runtime_error("a layer of this case is larger than the pool");
  c.k.clear(), c.v.clear();
  for (int i = 0; i < c.layers; ++i) {
    c.k.push_back(elements_.data() + i * c.layer_elements());
    c.v.push_back(elements_.data() + half + i * c.layer_elements());
  }
}

Case Pool::cut(const Heads& heads, const Cell& cell) const {
  Case c;
  c.q_heads = heads.q, c.kv_heads = heads.kv, c.head_dim = heads.dim;
  c.batch = cell.batch, c.context = cell.context;
  cut(c);
  return c;
}

}  // namespace tactic::bench::gpu
