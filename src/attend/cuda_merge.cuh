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

// What outputs are multiplied by, and the log-sum-exp (base e).
struct Closing {
  float factor, lse;
};
__device__ __forceinline__ Closing close_head(const AttendArgs& a, int q_head, HeadSum total, float lift) {
  if (total.sum == 0) return {0, -INFINITY};
  const float sink = a.query.sink_logits == nullptr ? -INFINITY : a.query.sink_logits[q_head] * kLog2e;
  const float top = fmaxf(total.maximum, sink);  // a sink far above must not overflow
  const float rescale = exp2f(total.maximum - top - lift);
  const float sum = total.sum * rescale + exp2f(sink - top);
  return {rescale / sum * a.v_scale, (top + log2f(sum)) / kLog2e};
}

// Four outputs of a head from dim `at`.
__device__ __forceinline__ void store_output(const AttendArgs& a, int sequence, int q_head, int at, float4 x) {
  auto* row = static_cast<unsigned char*>(a.output.out) + sequence * a.output.sequence_stride +
              (static_cast<std::size_t>(q_head) * a.v_dim + at) * size_of(a.output.type);
  if (a.output.type == DeviceType::f32) {
    *reinterpret_cast<float4*>(row) = x;
  } else if (a.output.type == DeviceType::f16) {
    *reinterpret_cast<uint2*>(row) = make_uint2(pack<__half>(x.x, x.y), pack<__half>(x.z, x.w));
  } else {
    *reinterpret_cast<uint2*>(row) = make_uint2(pack<__nv_bfloat16>(x.x, x.y), pack<__nv_bfloat16>(x.z, x.w));
  }
  const float check = (x.x - x.x) + (x.y - x.y) + (x.z - x.z) + (x.w - x.w);
  if (!(check == 0)) atomicOr(a.status + sequence, device_status::non_finite);
}

// Not inlined: cold code, wanted in four places.
__device__ __noinline__ void finish(const AttendArgs& a, int problem, int head, int at, float4 x, HeadSum total, float lift) {
  const int sequence = problem / a.kv_heads, q_head = problem % a.kv_heads * a.group + head;
  const Closing closing = close_head(a, q_head, total, lift);
  x = make_float4(x.x * closing.factor, x.y * closing.factor, x.z * closing.factor, x.w * closing.factor);
  store_output(a, sequence, q_head, at, x);
  if (at == 0 && a.output.lse != nullptr) {
    a.output.lse[static_cast<std::size_t>(sequence) * a.query.shape.q_heads + q_head] = closing.lse;
  }
}

// Zeros for problems without any token.
__device__ inline void write_empty(const AttendArgs& a, const int* first_tile) {
  const int quads = a.v_dim / 4;
#pragma unroll 1
  for (int problem = static_cast<int>(blockIdx.x); problem < a.problems; problem += static_cast<int>(gridDim.x)) {
    if (first_tile[problem] != first_tile[problem + 1]) continue;
#pragma unroll 1
    for (int item = static_cast<int>(threadIdx.x); item < a.group * quads; item += static_cast<int>(blockDim.x)) {
      finish(a, problem, item / quads, item % quads * 4, make_float4(0, 0, 0, 0), {-INFINITY, 0}, 0);
    }
  }
}

__device__ __forceinline__ float weight_of(float maximum, float top) {
  return maximum == -INFINITY ? 0.0f : exp2_fast(maximum - top);
}
__device__ __forceinline__ void add_scaled(float4& sum, float4 x, float w) {
  sum.x += x.x * w;
  sum.y += x.y * w;
  sum.z += x.z * w;
  sum.w += x.w * w;
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
#pragma unroll 4
    for (int w = 0; w < warps; ++w) top = fmaxf(top, fold.maximum[w][head]);
    float4 x = make_float4(0, 0, 0, 0);
    float sum = 0;
#pragma unroll 4
    for (int w = 0; w < warps; ++w) {
      const float weight = weight_of(fold.maximum[w][head], top);
      sum += fold.sum[w][head] * weight;
      add_scaled(x, *reinterpret_cast<const float4*>(fold.out + (w * heads + head) * stride + at), weight);
    }
    if (complete) {
      finish(a, problem, first + head, at, x, {top, sum}, lift);
      continue;
    }
    const std::size_t slot = (static_cast<std::size_t>(blockIdx.x) + problem) * a.group + first + head;
    __stcg(reinterpret_cast<float4*>(a.partial + slot * v_dim + at), x);
    if (at == 0) __stcg(a.partial_sum + slot, make_float2(top, sum));
  }
}

// Tells that this block's partial result lies in its slot; true for the last of `parts` blocks. One thread calls it, behind a
// barrier that all writers have passed.
__device__ __forceinline__ bool arrive_last(const AttendArgs& a, int problem, int parts) {
  __threadfence();
  const bool last = atomicAdd(a.arrivals + problem, 1u) == static_cast<unsigned>(parts) - 1;
  if (last) {
    a.arrivals[problem] = 0;  // for the next launch
    __threadfence();
  }
  return last;
}

// Merges the `parts` partial results of a problem that lie from slot `slot` on. All threads take part.
__device__ __forceinline__ void merge_blocks(const AttendArgs& a, float* memory, int problem, int slot, int parts, int v_dim,
                                             float lift) {
  constexpr int kAhead = 8;  // partial results a thread has on their way before it knows their weights
  __shared__ HeadSum totals[kMaxGroup];
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int quads = v_dim / 4, items = a.group * quads, columns = max(threads / items, 1);
  float* weights = memory;                                                            // [parts, G]
  auto* sums = reinterpret_cast<float4*>(memory + (parts * a.group + 3) / 4 * 4);     // [threads]
  const auto* partial = reinterpret_cast<const float4*>(a.partial) + static_cast<std::size_t>(slot) * items;
  const int column = thread / items;
  const int first_item = columns > 1 ? thread % items : thread;
  const bool busy = column < columns || columns == 1;
  float4 ahead[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int part = column + k * columns;
    const bool here = columns > 1 ? busy && part < parts : thread < items && k < parts;
    const int row = columns > 1 ? part : k;
    ahead[k] = here ? __ldcg(partial + static_cast<std::size_t>(row) * items + first_item) : make_float4(0, 0, 0, 0);
  }
#pragma unroll 1
  for (int head = thread / 32; head < a.group; head += threads / 32) {
    const float2* of = a.partial_sum + static_cast<std::size_t>(slot) * a.group + head;
    float top = -INFINITY, sum = 0;
#pragma unroll 1
    for (int part = lane; part < parts; part += 32) top = fmaxf(top, __ldcg(of + part * a.group).x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kWarp, top, step));
#pragma unroll 1
    for (int part = lane; part < parts; part += 32) {
      const float2 x = __ldcg(of + part * a.group);
      const float weight = weight_of(x.x, top);
      weights[part * a.group + head] = weight;
      sum += x.y * weight;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWarp, sum, step);
    if (lane == 0) totals[head] = {top, sum};
  }
  __syncthreads();
#pragma unroll 1
  for (int item = first_item; item < items; item += threads) {
    const int head = item / quads;
    const int from = columns > 1 ? column : 0;
    float4 x = make_float4(0, 0, 0, 0);
    if (item == first_item && busy) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int part = from + k * columns;
        if (part < parts) add_scaled(x, ahead[k], weights[part * a.group + head]);
      }
    }
    if (busy) {
#pragma unroll 4
      for (int part = from + (item == first_item ? kAhead * columns : 0); part < parts; part += columns) {
        add_scaled(x, __ldcg(partial + static_cast<std::size_t>(part) * items + item), weights[part * a.group + head]);
      }
    }
    if (columns == 1) {
      finish(a, problem, head, item % quads * 4, x, totals[head], lift);
    } else {
      sums[thread] = x;
      break;
    }
  }
  if (columns > 1) {
    __syncthreads();
    if (thread < items) {
      float4 x = sums[thread];
#pragma unroll 1
      for (int c = 1; c < columns; ++c) add_scaled(x, sums[c * items + thread], 1.0f);
      finish(a, problem, thread / quads, thread % quads * 4, x, totals[thread / quads], lift);
    }
  }
  __syncthreads();
}

}  // namespace tactic::cuda
