// Elements of any type as f32; checks and the softcap of logits.
#pragma once

#include "attend/cuda_ptx.cuh"
#include "core/device.h"

namespace tactic::cuda {

constexpr float kLog2e = 1.4426950408889634f;

// Elements i and i + 1 of a row.
__device__ __forceinline__ float2 load_two(const void* row, DeviceType type, int i) {
  const auto* bytes = static_cast<const unsigned char*>(row);
  if (type == DeviceType::f32) return *reinterpret_cast<const float2*>(bytes + 4 * i);
  if (type == DeviceType::fp8_e4m3) {
    return unpack<__half>(e4m3_to_half(*reinterpret_cast<const unsigned short*>(bytes + i)));
  }
  const std::uint32_t bits = *reinterpret_cast<const std::uint32_t*>(bytes + 2 * i);
  const float2 b = unpack<__nv_bfloat16>(bits), h = unpack<__half>(bits);
  return type == DeviceType::bf16 ? b : h;
}

// An infinite logit is as broken as NaN.
__device__ __forceinline__ float checked(float s) { return __fmaf_rn(s, 0.0f, s); }

// log2e softcap tanh(s), s = logit / softcap. Not inlined: few models cap.
[[maybe_unused]] static __device__ __noinline__ float capped(float s, float cap) {
  return cap * (1.0f - 2.0f / (exp2_fast(2 * kLog2e * s) + 1.0f));
}

}  // namespace tactic::cuda
