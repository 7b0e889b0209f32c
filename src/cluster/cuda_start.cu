// The start of k-means on the device: the random draw, the origin and scale of a problem's space, keys into that space, and the
// drawn keys as centroids.
#include <climits>

#include "cluster/cuda_batch.h"
#include "cluster/segment.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kStartThreads = 512;

// Sum over the block; all threads get it. shared [32].
__device__ float block_sum(float x, float* shared) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += shared[warp];
  return sum;
}

// 2^-round(log2 x); 1 where x is no positive normal number.
__device__ float inverse_power(float x) {
  if (!(x > 1e-30f && x < 1e30f)) return 1;
  return exp2f(-rintf(log2f(x)));
}

// draw_tokens() in parallel. Its step i exchanges entries i and j_i >= i of a growing-sorted array, and entry i is the draw. What
// step i finds at j is what the last step k < i with j_k = j left there: what it found at k itself. Steps of equal j hang on a
// list, heads [n] by j, next [count] by step.
__device__ int drawn(std::uint64_t key, int n, int step) {
  const std::uint64_t m = static_cast<std::uint64_t>(n - step);
  return step + static_cast<int>(((random_word(key, static_cast<std::uint64_t>(step)) >> 32) * m) >> 32);
}

__device__ void draw(std::uint64_t key, int n, int count, std::int32_t* heads, std::int32_t* next, std::int32_t* out) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) heads[i] = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) next[i] = atomicExch(&heads[drawn(key, n, i)], i);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    int position = drawn(key, n, i);
    int before = i;
    for (;;) {
      int last = -1;
      for (int k = heads[position]; k >= 0; k = next[k]) last = k < before && k > last ? k : last;
      if (last < 0) break;
      position = last;
      before = last;
    }
    out[i] = position;
  }
}

// Mean of kSampleTokens evenly spaced keys, and a power of two that brings their differences from it near 1.
__device__ void find_origin(const Job& job, int head, int dim, float* origin, float* scale, float* shared) {
  __shared__ float partial[2][kStartThreads * 8];
  const int lanes = dim / 8;
  const int groups = kStartThreads / lanes;
  const int group = threadIdx.x / lanes;
  const int i = threadIdx.x % lanes * 8;
  const int sample = min(job.n, kSampleTokens);
  float sum[8] = {};
  float squares[8] = {};
  if (group < groups) {
#pragma unroll 4
    for (int s = group; s < sample; s += groups) {
      const int token = job.first + static_cast<int>(static_cast<std::int64_t>(s) * job.n / sample);
      const std::byte* row = row_of(job, job.k, token, head);
      if (row == nullptr) continue;
      float x[8];
      load8(row, job.k.type, i, x);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float value = fabsf(x[e]) < 1e18f ? x[e] : 0.0f;  // squares stay finite
        sum[e] += value;
        squares[e] += value * value;
      }
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      partial[0][group * dim + i + e] = sum[e];
      partial[1][group * dim + i + e] = squares[e];
    }
  }
  __syncthreads();
  float variance = 0;
  float square = 0;
  if (threadIdx.x < dim) {
    float total = 0;
    for (int g = 0; g < groups; ++g) {
      total += partial[0][g * dim + threadIdx.x];
      square += partial[1][g * dim + threadIdx.x];
    }
    const float mean = total / sample;
    square /= sample;
    variance = fmaxf(square - mean * mean, 0.0f);
    if (variance < square * 1e-5f) variance = 0;  // rounding
    origin[threadIdx.x] = mean * job.k.scale;
  }
  const float rms = sqrtf(block_sum(variance, shared) / dim);
  const float magnitude = sqrtf(block_sum(square, shared) / dim);
  *scale = inverse_power((rms > 0 ? rms : magnitude) * job.k.scale);
}

// 2^e L^T, rows j (dims of y) by columns i (dims of k), into a tile; the identity without L. Returns 2^e.
__device__ float pack_factor(const Job& job, int head, int dim, std::byte* tile, float* shared) {
  const float* factor = job.factor == nullptr ? nullptr : job.factor + static_cast<std::int64_t>(head) * dim * dim;
  float square = 0;
  if (factor != nullptr) {
    for (int at = threadIdx.x; at < dim * dim; at += blockDim.x) square += factor[at] * factor[at];
  }
  const float sum = block_sum(square, shared);
  const float scale = factor == nullptr ? 1 : inverse_power(sqrtf(sum / dim));
  for (int at = threadIdx.x; at < dim * dim / 2; at += blockDim.x) {
    const int j = at % dim;
    const int i = at / dim * 2;
    const float low = factor == nullptr ? (i == j) : i >= j ? factor[i * dim + j] : 0;
    const float high = factor == nullptr ? (i + 1 == j) : i + 1 >= j ? factor[(i + 1) * dim + j] : 0;
    *reinterpret_cast<unsigned*>(tile + tile_offset(j, dim, i, dim)) = pack_half(low * scale, high * scale);
  }
  return scale;
}

// One thread block a problem.
__global__ void __launch_bounds__(kStartThreads) start_kernel(const __grid_constant__ Batch batch) {
  __shared__ float shared[32];
  const int problem = blockIdx.x;
  const Job& job = batch.jobs[problem / batch.heads];
  const int head = problem % batch.heads;
  const Work& work = batch.work;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const std::int64_t columns = static_cast<std::int64_t>(problem) * batch.columns;

  // cursor holds the draw until the centroids are seeded
  draw(random_word(batch.seed, static_cast<std::uint64_t>(head)), job.n, job.drawn, work.order + rows, work.sizes + columns,
       work.cursor + columns);
  __syncthreads();
  for (int i = threadIdx.x; i < batch.columns; i += blockDim.x) work.sizes[columns + i] = 0;
  for (int i = threadIdx.x; i < batch.rows; i += blockDim.x) work.nearest[rows + i] = -1;

  float scale = 1;
  find_origin(job, head, batch.dim, work.origin + static_cast<std::int64_t>(problem) * batch.dim, &scale, shared);
  const float factor_scale = pack_factor(
      job, head, batch.dim, work.factor + static_cast<std::int64_t>(problem) * tile_bytes(batch.dim, batch.dim), shared);
  if (threadIdx.x == 0) {
    const float y_scale = scale * factor_scale;
    work.state[problem] = {scale, 1 / (y_scale * y_scale), 0, INT_MAX, kNone, kNone, 0, 0};
  }
}

// Keys of two rows a thread (row and row + 8 of a tile of 16), less the origin and scaled: operand a straight from the cache.
template <int kDim>
__device__ __forceinline__ void load_tile(const Job& job, int head, const float* origin, ProblemState& state, int row,
                                          unsigned (&a)[kDim / 16][4]) {
  const int t = threadIdx.x % 4;
  const float scale = state.scale;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = row + 8 * half;
    const std::byte* source = token < job.n ? row_of(job, job.k, job.first + token, head) : nullptr;
    if (token < job.n && source == nullptr) state.bad_block = 1;
    bool finite = true;
    const auto load = [&](int at, unsigned(&out)[4]) {
      float x[8] = {};
      if (source != nullptr) load8(source, job.k.type, at, x);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        finite = finite && fabsf(x[e]) < INFINITY;
        x[e] = (x[e] * job.k.scale - __ldg(origin + at + e)) * scale;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = pack_half(x[2 * e], x[2 * e + 1]);
    };
#pragma unroll
    for (int block = 0; block < kDim / 32; ++block) {
      unsigned x[4];
      load(32 * block + 8 * t, x);
      a[2 * block][half] = x[0];
      a[2 * block][half + 2] = x[1];
      a[2 * block + 1][half] = x[2];
      a[2 * block + 1][half + 2] = x[3];
    }
    if constexpr (kDim % 32 != 0) {
      unsigned x[4];
      load(kDim - 16 + t / 2 * 8, x);
      a[kDim / 16 - 1][half] = t % 2 == 0 ? x[0] : x[2];
      a[kDim / 16 - 1][half + 2] = t % 2 == 0 ? x[1] : x[3];
    }
    if (!finite) atomicMin(&state.bad_k, static_cast<unsigned>(token));
  }
}

// y of 16 tokens a warp: their keys as operand a, 2^e L^T out of shared memory as operand b.
template <int kDim>
__global__ void __launch_bounds__(256, kDim <= 128 ? 3 : 1) load_kernel(const __grid_constant__ Batch batch) {
  extern __shared__ __align__(128) std::byte tile[];
  constexpr int kSteps = kDim / 16;
  const int problem = blockIdx.y;
  const Job& job = batch.jobs[problem / batch.heads];
  const int head = problem % batch.heads;
  const int first = blockIdx.x * kTokenTile;
  if (first >= job.n) return;
  const Work& work = batch.work;
  const float* origin = work.origin + static_cast<std::int64_t>(problem) * kDim;
  {
    const std::byte* source = work.factor + static_cast<std::int64_t>(problem) * tile_bytes(kDim, kDim);
    for (int i = threadIdx.x * 16; i < tile_bytes(kDim, kDim); i += 256 * 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(tile) + i), "l"(source + i));
    }
  }
  const int lane = threadIdx.x % 32;
  const int t = lane % 4;
  __half* y = work.y + static_cast<std::int64_t>(problem) * batch.rows * kDim;
#pragma unroll 1
  for (int part = 0; part < kTokenTile;
       part += 128) {  // assign() reads whole tiles: what lies behind the last token is written too
    const int row = first + part + threadIdx.x / 32 * 16 + lane / 4;
    unsigned a[kSteps][4];
    load_tile<kDim>(job, head, origin, work.state[problem], row, a);
    if (part == 0) {
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncthreads();
    }
    float norm[2] = {};
#pragma unroll
    for (int block = 0; block < (kDim + 31) / 32; ++block) {
      unsigned out[2][4];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        if (32 * block + 16 * pair >= kDim) continue;
        float sums[2][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          unsigned b[4];
          load_matrices(tile_address(shared_address(tile), kDim, 32 * block + 16 * pair, 16 * step, lane), b);
          multiply(a[step], b[0], b[1], sums[0]);
          multiply(a[step], b[2], b[3], sums[1]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const unsigned bits = pack_half(sums[j][2 * half], sums[j][2 * half + 1]);
            const float2 value = __half22float2(*reinterpret_cast<const __half2*>(&bits));
            norm[half] += value.x * value.x + value.y * value.y;
            out[half][2 * pair + j] = bits;
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        __half* to = y + static_cast<std::int64_t>(row + 8 * half) * kDim + 32 * block;
        if (32 * block + 32 <= kDim) {
          *reinterpret_cast<uint4*>(to + 8 * t) = make_uint4(out[half][0], out[half][1], out[half][2], out[half][3]);
        } else {
          *reinterpret_cast<uint2*>(to + 4 * t) = make_uint2(out[half][0], out[half][1]);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      norm[half] += __shfl_xor_sync(~0u, norm[half], 1);
      norm[half] += __shfl_xor_sync(~0u, norm[half], 2);
      if (t == 0) work.norm[static_cast<std::int64_t>(problem) * batch.rows + row + 8 * half] = norm[half];
    }
  }
}

// One warp a centroid.
__global__ void __launch_bounds__(128) seed_kernel(const __grid_constant__ Batch batch) {
  const int problem = blockIdx.y;
  const Job& job = batch.jobs[problem / batch.heads];
  const Work& work = batch.work;
  const int c = blockIdx.x * 4 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t column = static_cast<std::int64_t>(problem) * batch.columns + c;
  std::byte* tile = work.tiles + (column / kTileClusters) * tile_bytes(kTileClusters, batch.dim);
  float square = 0;
  if (lane < batch.dim / 8) {
    uint4 y = make_uint4(0, 0, 0, 0);
    if (c < job.drawn) {
      const std::int64_t token = static_cast<std::int64_t>(problem) * batch.rows + work.cursor[column];
      y = *reinterpret_cast<const uint4*>(work.y + token * batch.dim + lane * 8);
    }
    const unsigned words[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      *reinterpret_cast<unsigned*>(tile + tile_offset(c % kTileClusters, kTileClusters, lane * 8 + 2 * e, batch.dim)) = words[e];
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[e]));
      square += pair.x * pair.x + pair.y * pair.y;
    }
  }
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
  if (lane == 0) work.bias[column] = c < job.drawn ? -0.5f * square : -INFINITY;
}

template <int kDim>
void load_keys_of(const Batch& batch, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(tile_bytes(kDim, kDim));
  check(cudaFuncSetAttribute(load_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "load_keys");
  const auto problems = static_cast<unsigned>(batch.job_count * batch.heads);
  launch("load_keys", load_kernel<kDim>, {dim3(static_cast<unsigned>(batch.rows / kTokenTile), problems), 256, bytes}, stream,
         batch);
}

}  // namespace

void start_problems(const Batch& batch, cudaStream_t stream) {
  launch("start_problems", start_kernel, {static_cast<unsigned>(batch.job_count * batch.heads), kStartThreads}, stream, batch);
}

void load_keys(const Batch& batch, cudaStream_t stream) {
  with_dim(batch.dim, [&]<int kDim>() { load_keys_of<kDim>(batch, stream); });
}

void seed_centroids(const Batch& batch, cudaStream_t stream) {
  const auto problems = static_cast<unsigned>(batch.job_count * batch.heads);
  launch("seed_centroids", seed_kernel, {dim3(static_cast<unsigned>(batch.columns / 4), problems), 128}, stream, batch);
}

}  // namespace tactic::cuda
