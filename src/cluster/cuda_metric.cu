// The query metric on the device: moment of the ring's queries, its average over rotary turns, shrinkage, Cholesky factor.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <complex>

#include "cluster/cuda_metric.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBunchRows = 64;  // queries that pass through shared memory together
constexpr int kPanel = 16;      // columns of a step of the factorisation

__device__ __forceinline__ float load_element(const void* row, DeviceType type, int i) {
  if (type == DeviceType::f32) return static_cast<const float*>(row)[i];
  if (type == DeviceType::f16) return __half2float(static_cast<const __half*>(row)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(row)[i]);
}

// One row of q into the ring, by the thread block. A row with NaN or infinity is none.
__device__ void store_row(const QueryRing& ring, const Shape& shape, int sequence, const std::byte* q, DeviceType type,
                          int token) {
  const int width = shape.q_heads * shape.head_dim;
  const std::int64_t at = static_cast<std::int64_t>(sequence) * QueryRing::kWindow + token % QueryRing::kWindow;
  bool finite = true;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float value = load_element(q, type, i);
    finite = finite && fabsf(value) < INFINITY;
    ring.rows[at * width + i] = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
  finite = __syncthreads_and(finite);
  if (threadIdx.x == 0) ring.tokens[at] = finite ? token : -1;
}

__global__ void clear_kernel(QueryRing ring, int sequence) { ring.tokens[sequence * QueryRing::kWindow + threadIdx.x] = -1; }

__global__ void __launch_bounds__(kThreads) observe_kernel(QueryRing ring, DeviceQuery query, const std::int32_t* lengths) {
  const int token = lengths[blockIdx.x] - 1;
  if (token < 0) return;
  const auto* q = static_cast<const std::byte*>(query.q) + blockIdx.x * query.sequence_stride;
  store_row(ring, query.shape, static_cast<int>(blockIdx.x), q, query.type, token);
}

__global__ void __launch_bounds__(kThreads) prompt_kernel(QueryRing ring, Shape shape, int sequence, const std::byte* q,
                                                          DeviceType type, std::int64_t stride, int first) {
  store_row(ring, shape, sequence, q + blockIdx.x * stride, type, first + static_cast<int>(blockIdx.x));
}

// Rows 16 b .. of M = mean over the ring's tokens and the group of q q^T, into factor; one thread block for each 16 rows.
__global__ void __launch_bounds__(kThreads) moment_kernel(QueryRing ring, Shape shape, int group, int sequence, float* factor) {
  __shared__ __align__(16) __nv_bfloat16 rows[kBunchRows][kMaxHeadDim];
  const int dim = shape.head_dim;
  const int head = blockIdx.y;
  const int i = blockIdx.x * 16 + threadIdx.x / 16;
  const int j = threadIdx.x % 16;
  const std::int32_t* tokens = ring.tokens + static_cast<std::int64_t>(sequence) * QueryRing::kWindow;
  const int observed = __syncthreads_count(threadIdx.x < QueryRing::kWindow && tokens[threadIdx.x] >= 0);
  float sums[kMaxHeadDim / 16] = {};
  for (int first = 0; first < QueryRing::kWindow * group; first += kBunchRows) {
    __syncthreads();
    for (int at = threadIdx.x * 8; at < kBunchRows * dim; at += kThreads * 8) {
      const int row = first + at / dim;
      uint4 bits = make_uint4(0, 0, 0, 0);
      if (row < QueryRing::kWindow * group && tokens[row / group] >= 0) {
        const std::int64_t place = static_cast<std::int64_t>(sequence) * QueryRing::kWindow + row / group;
        const std::int64_t q = (place * shape.q_heads + head * group + row % group) * dim + at % dim;
        bits = *reinterpret_cast<const uint4*>(ring.rows + q);
      }
      *reinterpret_cast<uint4*>(&rows[at / dim][at % dim]) = bits;
    }
    __syncthreads();
    for (int row = 0; row < kBunchRows; ++row) {
      const float left = __bfloat162float(rows[row][i]);
#pragma unroll
      for (int step = 0; step < kMaxHeadDim / 16; ++step) {
        if (step * 16 < dim) sums[step] += left * __bfloat162float(rows[row][step * 16 + j]);
      }
    }
  }
  const float inverse = observed > 0 ? 1.0f / static_cast<float>(observed * group) : 0.0f;
  float* out = factor + (static_cast<std::int64_t>(head) * dim + i) * dim;
#pragma unroll
  for (int step = 0; step < kMaxHeadDim / 16; ++step) {
    if (step * 16 < dim) out[step * 16 + j] = sums[step] * inverse;
  }
}

// Dims of pair p: the turned ones by layout, then neighbours.
__device__ __forceinline__ int2 dims_of(const TurnTable& table, int p) {
  if (p >= table.turned) return make_int2(2 * p, 2 * p + 1);
  return table.layout == Rotary::Layout::interleaved ? make_int2(2 * p, 2 * p + 1) : make_int2(p, p + table.turned);
}

// A 2 x 2 block between pairs p and r as two complex numbers that turn by the difference and the sum of their frequencies.
__device__ void average(float* m, int dim, const TurnTable& table) {
  const int pairs = dim / 2;
  for (int block = threadIdx.x; block < pairs * pairs; block += kThreads) {
    const int2 p = dims_of(table, block / pairs);
    const int2 r = dims_of(table, block % pairs);
    const float4 turn = *reinterpret_cast<const float4*>(table.turns + 4 * block);
    const float aa = m[p.x * dim + r.x], bb = m[p.y * dim + r.y], ba = m[p.y * dim + r.x], ab = m[p.x * dim + r.y];
    const float2 u = make_float2((aa + bb) / 2, (ba - ab) / 2);
    const float2 v = make_float2((aa - bb) / 2, (ba + ab) / 2);
    const float2 a = make_float2(u.x * turn.x - u.y * turn.y, u.x * turn.y + u.y * turn.x);
    const float2 b = make_float2(v.x * turn.z - v.y * turn.w, v.x * turn.w + v.y * turn.z);
    m[p.x * dim + r.x] = a.x + b.x;
    m[p.y * dim + r.y] = a.x - b.x;
    m[p.y * dim + r.x] = b.y + a.y;
    m[p.x * dim + r.y] = b.y - a.y;
  }
  __syncthreads();
}

// L of m in place, right-looking in panels; zeros above the diagonal. least: the smallest pivot.
__device__ void cholesky_in_place(float* m, int dim, float least) {
  __shared__ float corner[kPanel][kPanel + 1];
  __shared__ float panel[kMaxHeadDim][kPanel + 1];
  for (int k = 0; k < dim; k += kPanel) {
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x;
      for (int at = lane; at < kPanel * kPanel; at += 32)
        corner[at / kPanel][at % kPanel] = m[(k + at / kPanel) * dim + k + at % kPanel];
      __syncwarp();
      for (int j = 0; j < kPanel; ++j) {
        const float pivot = sqrtf(fmaxf(corner[j][j], least));
        __syncwarp();
        if (lane == j) corner[j][j] = pivot;
        if (lane > j && lane < kPanel) corner[lane][j] /= pivot;
        __syncwarp();
        if (lane > j && lane < kPanel) {
          for (int i = j + 1; i <= lane; ++i) corner[lane][i] -= corner[lane][j] * corner[i][j];
        }
        __syncwarp();
      }
      for (int at = lane; at < kPanel * kPanel; at += 32) {
        const int i = at / kPanel;
        const int j = at % kPanel;
        m[(k + i) * dim + k + j] = j <= i ? corner[i][j] : 0;
      }
    }
    __syncthreads();
    const int below = dim - k - kPanel;
    for (int i = threadIdx.x; i < below; i += kThreads) {
      float* row = m + (k + kPanel + i) * dim + k;
      for (int j = 0; j < kPanel; ++j) {
        float sum = row[j];
        for (int e = 0; e < j; ++e) sum -= panel[i][e] * corner[j][e];
        panel[i][j] = sum / corner[j][j];
      }
      for (int j = 0; j < kPanel; ++j) row[j] = panel[i][j];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < kPanel * below; at += kThreads) m[(k + at / below) * dim + k + kPanel + at % below] = 0;
    for (int at = threadIdx.x; at < below * below; at += kThreads) {
      const int i = at / below;
      const int j = at % below;
      if (j > i) continue;
      float sum = 0;
      for (int e = 0; e < kPanel; ++e) sum += panel[i][e] * panel[j][e];
      m[(k + kPanel + i) * dim + k + kPanel + j] -= sum;
    }
    __syncthreads();
  }
}

// M's diagonal, equal in the sets of dims that rotation mixes, as a diagonal factor.
__device__ void diagonal_factor(float* m, int dim, const TurnTable& table, float keep, float floor) {
  __shared__ float diagonal[kMaxHeadDim];
  for (int i = threadIdx.x; i < dim; i += kThreads) diagonal[i] = m[i * dim + i];
  __syncthreads();
  for (int at = threadIdx.x; at < dim * dim; at += kThreads) m[at] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    float value = diagonal[i];
    if (table.layout == Rotary::Layout::unknown) {  // {2p, 2p + 1} and {p, p + d / 2} both stay inside these
      const int a = i % (dim / 2) / 2 * 2;
      value = (diagonal[a] + diagonal[a + 1] + diagonal[a + dim / 2] + diagonal[a + 1 + dim / 2]) / 4;
    } else if (table.layout != Rotary::Layout::none && i < 2 * table.turned) {
      const int2 pair = dims_of(table, table.layout == Rotary::Layout::interleaved ? i / 2 : i % table.turned);
      value = (diagonal[pair.x] + diagonal[pair.y]) / 2;
    }
    m[i * dim + i] = sqrtf(keep * value + floor);
  }
}

// One thread block a KV head, factor holding the moment.
__global__ void __launch_bounds__(kThreads)
    factor_kernel(Shape shape, Metric wanted, TurnTable table, float shrinkage, float* factor) {
  __shared__ float trace;
  const int dim = shape.head_dim;
  float* m = factor + static_cast<std::int64_t>(blockIdx.x) * dim * dim;
  if (threadIdx.x == 0) {
    trace = 0;
    for (int i = 0; i < dim; ++i) trace += m[i * dim + i];
  }
  __syncthreads();
  if (wanted == Metric::l2 || !(trace > 0 && trace < INFINITY)) {
    for (int at = threadIdx.x; at < dim * dim; at += kThreads) m[at] = at / dim == at % dim ? 1 : 0;
    return;
  }
  const float keep = 1 - shrinkage;
  const float floor = shrinkage * trace / static_cast<float>(dim);
  if (wanted == Metric::diagonal || table.layout == Rotary::Layout::unknown) {
    diagonal_factor(m, dim, table, keep, floor);
    return;
  }
  if (table.layout != Rotary::Layout::none) average(m, dim, table);
  for (int at = threadIdx.x; at < dim * dim; at += kThreads) m[at] = keep * m[at] + (at / dim == at % dim ? floor : 0);
  __syncthreads();
  // Pivots are at least shrinkage * tr / d but for rounding; the bound is for a shrinkage of about the rounding error.
  cholesky_in_place(m, dim, 1e-7f * trace);
}

// Mean of exp(i w s) over s = 0 .. kRotarySpan: a geometric series.
std::complex<double> mean_turn(double w) {
  const double count = kRotarySpan + 1;
  const std::complex<double> step = 1.0 - std::polar(1.0, w);
  if (std::abs(step) < 1e-9) return std::polar(1.0, w * kRotarySpan / 2);
  return (1.0 - std::polar(1.0, w * count)) / (count * step);
}

std::size_t row_bytes(int sequences, const Shape& shape) {
  const std::size_t bytes = static_cast<std::size_t>(sequences) * QueryRing::kWindow * static_cast<std::size_t>(shape.q_heads) *
                            static_cast<std::size_t>(shape.head_dim) * 2;
  return (bytes + 255) / 256 * 256;
}

}  // namespace

std::size_t query_ring_bytes(int sequences, const Shape& shape) {
  return row_bytes(sequences, shape) + static_cast<std::size_t>(sequences) * QueryRing::kWindow * 4;
}

QueryRing make_query_ring(int sequences, const Shape& shape, void* memory) {
  return {static_cast<std::uint16_t*>(memory),
          reinterpret_cast<std::int32_t*>(static_cast<std::byte*>(memory) + row_bytes(sequences, shape))};
}

void clear_query_ring(const QueryRing& ring, int sequence, DeviceStream stream) {
  launch("clear_query_ring", clear_kernel, {1, QueryRing::kWindow}, stream, ring, sequence);
}

void observe_step(const QueryRing& ring, const DeviceQuery& query, const std::int32_t* lengths, int sequences,
                  DeviceStream stream) {
  launch("observe_step", observe_kernel, {static_cast<unsigned>(sequences), kThreads}, stream, ring, query, lengths);
}

void observe_prompt(const QueryRing& ring, const Shape& shape, int sequence, const void* q, DeviceType type,
                    std::int64_t token_stride, std::int32_t first, std::int32_t tokens, DeviceStream stream) {
  const std::int32_t counted = std::min(tokens, QueryRing::kWindow);
  if (counted <= 0) return;
  const auto* rows = static_cast<const std::byte*>(q) + (tokens - counted) * token_stride;
  launch("observe_prompt", prompt_kernel, {static_cast<unsigned>(counted), kThreads}, stream, ring, shape, sequence, rows, type,
         token_stride, first + tokens - counted);
}

std::vector<float> turn_table(const Rotary& rotary, int dim) {
  const int pairs = dim / 2;
  const int turned = std::min(static_cast<int>(rotary.frequency.size()), pairs);
  const auto frequency = [&](int p) {
    return p < turned ? static_cast<double>(rotary.frequency[static_cast<std::size_t>(p)]) : 0.0;
  };
  std::vector<float> table;
  for (int p = 0; p < pairs; ++p) {
    for (int r = 0; r < pairs; ++r) {
      for (const double w : {frequency(p) - frequency(r), frequency(p) + frequency(r)}) {
        const std::complex<double> turn = mean_turn(w);
        table.push_back(static_cast<float>(turn.real()));
        table.push_back(static_cast<float>(turn.imag()));
      }
    }
  }
  return table;
}

void make_factors(const QueryRing& ring, const Shape& shape, int sequence, Metric wanted, const TurnTable& table, float shrinkage,
                  float* factor, DeviceStream stream) {
  const auto heads = static_cast<unsigned>(shape.kv_heads);
  if (wanted != Metric::l2) {
    launch("moment", moment_kernel, {dim3(static_cast<unsigned>(shape.head_dim / 16), heads), kThreads}, stream, ring, shape,
           shape.group(), sequence, factor);
  }
  launch("make_factors", factor_kernel, {heads, kThreads}, stream, shape, wanted, table, shrinkage, factor);
}

}  // namespace tactic::cuda
