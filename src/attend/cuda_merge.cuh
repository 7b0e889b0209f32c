// From the warps' results to a thread block's, and from the thread blocks' to the output.
//
// A problem that lies inside one thread block's stretch is written at once. Otherwise every block but the last leaves a partial
// result in global memory, slot (block + problem), and the last one merges them in the order of the slots: the same order in
// every run. Partial results tell by themselves that they have arrived: scratch is zero between calls, +0 is written as -0, and
// who merges reads until no word is zero, then writes zeros again. That takes one trip through the L2 cache where a fence, a
// counter and a read would take three. The block that waits has a larger number than all it waits for, so those have been
// started.
#pragma once

#include "attend/cuda_math.cuh"

namespace tactic::cuda {

struct HeadSum {
  float maximum;  // log2 domain
  float sum;      // of 2^(s - maximum + lift)
};

__device__ __forceinline__ float weight_of(float maximum, float top) {
  return maximum == -INFINITY ? 0.0f : exp2_fast(maximum - top);
}
__device__ __forceinline__ void add_scaled(float4& sum, float4 x, float w) {
  sum.x += x.x * w;
  sum.y += x.y * w;
  sum.z += x.z * w;
  sum.w += x.w * w;
}

// Normalises four outputs of a head from dim `at` and writes them, and with at = 0 the log-sum-exp.
__device__ __forceinline__ void finish(const AttendArgs& a, int problem, int head, int at, float4 x, HeadSum total, float lift) {
  const int sequence = quotient(problem, a.by_heads), q_head = (problem - sequence * a.kv_heads) * a.group + head;
  float factor = 0, top = -INFINITY, sum = 1;
  if (total.sum != 0) {
    const float sink = a.query.sink_logits == nullptr ? -INFINITY : a.query.sink_logits[q_head] * kLog2e;
    top = fmaxf(total.maximum, sink);  // a sink far above must not overflow
    const float rescale = exp2_fast(total.maximum - top - lift);
    sum = total.sum * rescale + exp2_fast(sink - top);
    factor = __fdividef(rescale, sum) * a.v_scale;
  }
  x = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
  const std::size_t element = static_cast<std::size_t>(q_head) * a.v_dim + at;
  auto* row = static_cast<unsigned char*>(a.output.out) + sequence * a.output.sequence_stride;
  if (a.output.type == DeviceType::f32) {
    *reinterpret_cast<float4*>(row + element * 4) = x;
  } else {
    const bool half = a.output.type == DeviceType::f16;
    *reinterpret_cast<uint2*>(row + element * 2) = make_uint2(half ? pack<__half>(x.x, x.y) : pack<__nv_bfloat16>(x.x, x.y),
                                                              half ? pack<__half>(x.z, x.w) : pack<__nv_bfloat16>(x.z, x.w));
  }
  if (at == 0 && a.output.lse != nullptr) {
    a.output.lse[static_cast<std::size_t>(sequence) * a.query.shape.q_heads + q_head] = (top + log2f(sum)) / kLog2e;
  }
  const float check = (x.x - x.x) + (x.y - x.y) + (x.z - x.z) + (x.w - x.w);
  if (!(check == 0)) report(a.status + sequence, device_status::non_finite);
}

// Zeros for problems without any token.
__device__ __forceinline__ void write_empty(const AttendArgs& a, const int* first_tile) {
#pragma unroll 1
  for (int problem = static_cast<int>(blockIdx.x); problem < a.problems; problem += static_cast<int>(gridDim.x)) {
    if (first_tile[problem] != first_tile[problem + 1]) continue;
    const int quads = a.v_dim / 4;
#pragma unroll 1
    for (int item = static_cast<int>(threadIdx.x); item < a.group * quads; item += static_cast<int>(blockDim.x)) {
      finish(a, problem, item / quads, item % quads * 4, make_float4(0, 0, 0, 0), {-INFINITY, 0}, 0);
    }
  }
}

// ---- words that are zero until they are written ----

__device__ __forceinline__ float present(float x) { return x == 0.0f ? -0.0f : x; }
__device__ __forceinline__ bool absent(float x) { return __float_as_uint(x) == 0; }
__device__ __forceinline__ bool absent(float4 x) { return absent(x.x) || absent(x.y) || absent(x.z) || absent(x.w); }
__device__ __forceinline__ bool absent(float2 x) { return absent(x.x) || absent(x.y); }

__device__ __forceinline__ void store_present(float* to, float4 x) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(present(x.x)), "f"(present(x.y)),
               "f"(present(x.z)), "f"(present(x.w))
               : "memory");
}
__device__ __forceinline__ void store_present(float2* to, float2 x) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(present(x.x)), "f"(present(x.y)) : "memory");
}
__device__ __forceinline__ float4 load_shared_device(const float4* from) {
  float4 x;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ float2 load_shared_device(const float2* from) {
  float2 x;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(from) : "memory");
  return x;
}

// Where a thread block's warps leave their results of up to 8 heads: in the ring's stage that they have just read. Rows are 4
// floats longer than V, against bank conflicts.
struct Fold {
  unsigned char* rings;
  int ring_bytes;
  int (*place)[kMaxWarps];  // of a warp's result in its ring, bytes
  float (*maximum)[8];      // [kMaxWarps][8]
  float (*sum)[8];
  float* own;        // [G, v_dim] the block's part of a problem that began in an earlier block
  HeadSum* own_sum;  // [G]
};

enum class Part { complete, published, kept };

// All warps' results of heads first .. first + heads - 1: to the output, to the block's slot, or to `own`.
__device__ __forceinline__ void fold_warps(const AttendArgs& a, const Fold& fold, int problem, int first, int heads, Part part,
                                           int v_dim, float lift) {
  const int quads = v_dim / 4, stride = v_dim + 4, warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x); item < heads * quads; item += static_cast<int>(blockDim.x)) {
    const int head = item / quads, at = item % quads * 4;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kMaxWarps; ++w) {
      if (w < warps) top = fmaxf(top, fold.maximum[w][head]);
    }
    float4 x = make_float4(0, 0, 0, 0);
    float sum = 0;
#pragma unroll 4
    for (int w = 0; w < warps; ++w) {
      const float weight = weight_of(fold.maximum[w][head], top);
      const auto* out = reinterpret_cast<const float*>(fold.rings + w * fold.ring_bytes + (*fold.place)[w]);
      sum += fold.sum[w][head] * weight;
      add_scaled(x, *reinterpret_cast<const float4*>(out + head * stride + at), weight);
    }
    if (part == Part::complete) {
      finish(a, problem, first + head, at, x, {top, sum}, lift);
    } else if (part == Part::kept) {
      *reinterpret_cast<float4*>(fold.own + (first + head) * v_dim + at) = x;
      if (at == 0) fold.own_sum[first + head] = {top, sum};
    } else {
      const std::size_t slot = (static_cast<std::size_t>(blockIdx.x) + problem) * a.group + first + head;
      store_present(a.partial + slot * v_dim + at, x);
      if (at == 0) store_present(a.partial_sum + slot, make_float2(top, sum));
    }
  }
}

// x += part, both unnormalised with a maximum and sum of their own.
__device__ __forceinline__ void add_part(float4& x, HeadSum& total, float4 part, float2 part_sum, float top) {
  const float weight = weight_of(part_sum.x, top);
  total.sum += part_sum.y * weight;
  add_scaled(x, part, weight);
}

// Merges the `parts` partial results of a problem that lie from slot `slot` on, and the block's own. All threads take part. The
// threads stand in `columns`; column c adds parts c, c + columns, ... `memory` [threads] has nothing that is needed.
__device__ __forceinline__ void merge_blocks(const AttendArgs& a, const Fold& fold, unsigned char* memory, int problem, int slot,
                                             int parts, int v_dim, float lift) {
  constexpr int kAhead = 4;  // partial results a thread has on their way at a time
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int quads = v_dim / 4, items = a.group * quads;
  const int width = min(items, threads), columns = threads / width, column = thread / width;
  auto* of_column = reinterpret_cast<float4*>(memory);
  auto* sum_of_column = reinterpret_cast<HeadSum*>(of_column + threads);
  auto* partial = reinterpret_cast<float4*>(a.partial) + static_cast<std::size_t>(slot) * items;
  float2* partial_sum = a.partial_sum + static_cast<std::size_t>(slot) * a.group;
#pragma unroll 1
  for (int begin = 0; begin < items; begin += width) {
    const int item = begin + thread - column * width, head = item / quads;
    float4 x = make_float4(0, 0, 0, 0);
    HeadSum total{-INFINITY, 0};
    const bool busy = column < columns && item < items;
    if (busy && column == 0) {
      x = reinterpret_cast<const float4*>(fold.own)[item];
      total = fold.own_sum[head];
    }
#pragma unroll 1
    for (int first = column; busy && first < parts; first += kAhead * columns) {
      float4 ahead[kAhead];
      float2 ahead_sum[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int part = first + k * columns;
        ahead_sum[k] = make_float2(-INFINITY, 1);  // weighs nothing
        ahead[k] = make_float4(1, 1, 1, 1);
        if (part >= parts) continue;
        ahead_sum[k] = load_shared_device(partial_sum + part * a.group + head);
        ahead[k] = load_shared_device(partial + static_cast<std::size_t>(part) * items + item);
      }
      int patience = kPatience;
      bool missing = true;
#pragma unroll 1
      while (missing && --patience > 0) {
        missing = false;
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          if (!absent(ahead[k]) && !absent(ahead_sum[k])) continue;
          missing = true;
          const int part = first + k * columns;
          ahead_sum[k] = load_shared_device(partial_sum + part * a.group + head);
          ahead[k] = load_shared_device(partial + static_cast<std::size_t>(part) * items + item);
        }
      }
      if (missing) report(a.status + quotient(problem, a.by_heads), device_status::bad_index);
      float top = total.maximum;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) top = fmaxf(top, ahead_sum[k].x);
      const float keep = weight_of(total.maximum, top);
      x = make_float4(x.x * keep, x.y * keep, x.z * keep, x.w * keep);
      total = {top, total.sum * keep};
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int part = first + k * columns;
        if (part >= parts) continue;
        add_part(x, total, ahead[k], ahead_sum[k], top);
        __stcg(partial + static_cast<std::size_t>(part) * items + item, make_float4(0, 0, 0, 0));
      }
    }
    if (columns > 1) {  // then items fit the width, and this is the only round
      of_column[thread] = x;
      sum_of_column[thread] = total;
      __syncthreads();
      if (column > 0) break;
      float top = total.maximum;
#pragma unroll 1
      for (int other = thread + width; other < columns * width; other += width) top = fmaxf(top, sum_of_column[other].maximum);
      const float keep = weight_of(total.maximum, top);
      x = make_float4(x.x * keep, x.y * keep, x.z * keep, x.w * keep);
      total = {top, total.sum * keep};
#pragma unroll 1
      for (int other = thread + width; other < columns * width; other += width) {
        const HeadSum of = sum_of_column[other];
        add_part(x, total, of_column[other], make_float2(of.maximum, of.sum), top);
      }
    }
    if (busy) finish(a, problem, head, item % quads * 4, x, total, lift);
  }
  __syncthreads();  // all have read the sums
#pragma unroll 1
  for (int i = thread; i < parts * a.group; i += threads) __stcg(partial_sum + i, make_float2(0, 0));
}

}  // namespace tactic::cuda
