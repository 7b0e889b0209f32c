// From the warps' results to a thread block's, and from the thread blocks' to the output.
//
// A problem that lies inside one thread block's stretch is written at once. Otherwise every block leaves a partial result in
// global memory, slot (block + problem), and the block that arrives last merges them in the order of the slots: the same order in
// every run.
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

// Where a thread block's warps leave their results of up to 8 heads. Rows are 4 floats longer than V, against bank conflicts.
struct Fold {
  float* out;  // [warps, heads, v_dim + 4]
  float (*maximum)[8];
  float (*sum)[8];
};

// All warps' results of heads first .. first + heads - 1: to the output when complete, else to the block's slot.
__device__ __forceinline__ void fold_warps(const AttendArgs& a, const Fold& fold, int problem, int first, int heads,
                                           bool complete, int v_dim, float lift) {
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
#pragma unroll 2
    for (int w = 0; w < warps; ++w) {
      const float weight = weight_of(fold.maximum[w][head], top);
      sum += fold.sum[w][head] * weight;
      add_scaled(x, *reinterpret_cast<const float4*>(fold.out + (w * heads + head) * stride + at), weight);
    }
    if (complete) {
      finish(a, problem, first + head, at, x, {top, sum}, lift);
    } else {
      const std::size_t slot = (static_cast<std::size_t>(blockIdx.x) + problem) * a.group + first + head;
      __stcg(reinterpret_cast<float4*>(a.partial + slot * v_dim + at), x);
      if (at == 0) __stcg(a.partial_sum + slot, make_float2(top, sum));
    }
  }
}

// Tells that this block's partial result lies in its slot; true for the last of `parts` blocks. One thread calls it, behind a
// barrier that all writers have passed.
__device__ __forceinline__ bool arrive_last(const AttendArgs& a, int problem, int parts) {
  fence_device();
  const bool last = atomicAdd(a.arrivals + problem, 1u) == static_cast<unsigned>(parts) - 1;
  if (last) {
    a.arrivals[problem] = 0;  // for the next launch
    fence_device();
  }
  return last;
}

// Merges the `parts` partial results of a problem that lie from slot `slot` on. All threads take part. The threads stand in
// `columns`; column c adds parts c, c + columns, ...
__device__ __forceinline__ void merge_blocks(const AttendArgs& a, float* memory, int problem, int slot, int parts, int v_dim,
                                             float lift) {
  constexpr int kAhead = 8;  // partial results a thread has on their way at a time
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int quads = v_dim / 4, items = a.group * quads;
  const int width = min(items, threads), columns = threads / width, column = thread / width;
  auto* heads = reinterpret_cast<HeadSum*>(memory);                                    // [parts, G]
  auto* sums = reinterpret_cast<float4*>(memory + (2 * parts * a.group + 3) / 4 * 4);  // [threads]
  const auto* partial = reinterpret_cast<const float4*>(a.partial) + static_cast<std::size_t>(slot) * items;
  const float2* partial_sum = a.partial_sum + static_cast<std::size_t>(slot) * a.group;
  bool ready = false;
#pragma unroll 1
  for (int begin = 0; begin < items; begin += width) {
    const int item = begin + thread - column * width, head = item / quads;
    float4 x = make_float4(0, 0, 0, 0);
    HeadSum total{-INFINITY, 0};
    const bool busy = column < columns && item < items;
#pragma unroll 1
    for (int first = column; first < parts || !ready; first += kAhead * columns) {
      float4 ahead[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int part = first + k * columns;
        if (busy && part < parts) ahead[k] = __ldcg(partial + static_cast<std::size_t>(part) * items + item);
      }
      if (!ready) {
#pragma unroll 1
        for (int i = thread; i < parts * a.group; i += threads) {
          const float2 of = __ldcg(partial_sum + i);
          heads[i] = {of.x, of.y};
        }
        __syncthreads();
        ready = true;
      }
      if (!busy) break;
      if (first == column) {
#pragma unroll 4
        for (int part = 0; part < parts; ++part) total.maximum = fmaxf(total.maximum, heads[part * a.group + head].maximum);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int part = first + k * columns;
        if (part < parts) {
          const HeadSum of = heads[part * a.group + head];
          const float weight = weight_of(of.maximum, total.maximum);
          total.sum += of.sum * weight;
          add_scaled(x, ahead[k], weight);
        }
      }
    }
    if (columns > 1) {  // then items fit the width, and this is the only round
      __shared__ float column_sum[32 * kMaxWarps];
      sums[thread] = x;
      column_sum[thread] = total.sum;
      __syncthreads();
      if (column > 0) break;
#pragma unroll 1
      for (int other = thread + width; other < columns * width; other += width) {
        add_scaled(x, sums[other], 1.0f);
        total.sum += column_sum[other];
      }
    }
    if (busy) finish(a, problem, head, item % quads * 4, x, total, lift);
  }
  __syncthreads();
}

}  // namespace tactic::cuda
