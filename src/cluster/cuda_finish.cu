// From the clusters k-means found to columns of the index: tokens, centroids, spread, mean V, covariance, and at last the counts.
#include "cluster/cuda_cluster.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

__device__ __forceinline__ float add(float a, float b) { return a + b; }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }

// mean [dim] into int8: round(mean / scale), scale = max |mean| / 127.
__device__ void store_int8(const float* mean, int dim, std::int8_t* out, float* scale, ClusterShared& shared) {
  float largest = 0;
  for (int i = threadIdx.x; i < dim; i += kClusterThreads) largest = fmaxf(largest, fabsf(mean[i]));
  largest = reduce(largest, shared, larger);
  const float inverse = largest > 1e-36f ? 127.0f / largest : 0.0f;
  const int i = threadIdx.x * 2;
  if (i < dim) {
    const int low = __float2int_rn(mean[i] * inverse);
    const int high = __float2int_rn(mean[i + 1] * inverse);
    *reinterpret_cast<char2*>(out + i) = make_char2(static_cast<signed char>(low), static_cast<signed char>(high));
  }
  if (threadIdx.x == 0) *scale = inverse > 0 ? largest / 127.0f : 0.0f;
}

// Sums over a cluster: keys, y less the y of its first token, the square of that, values.
struct Sums {
  float k[8] = {};
  float y[8] = {};
  float square = 0;
  float v[8] = {};
};

__device__ __forceinline__ void add_keys(const Job& job, int head, const __half* y, int dim, const std::int32_t* tokens, int size,
                                         const Group& group, Sums& sums) {
  float base[8];
  load_y(y + static_cast<std::int64_t>(tokens[0]) * dim + group.i, base);
#pragma unroll 4
  for (int at = group.number; at < size; at += group.groups) {
    const int token = tokens[at];
    float k[8];
    float now[8];
    load8(row_of(job, job.k, job.first + token, head), job.k.type, group.i, k);
    load_y(y + static_cast<std::int64_t>(token) * dim + group.i, now);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      sums.k[e] += k[e];
      const float difference = now[e] - base[e];
      sums.y[e] += difference;
      sums.square += difference * difference;
    }
  }
}

__device__ __forceinline__ void add_values(const Job& job, int head, const std::int32_t* tokens, int size, const Group& group,
                                           std::uint32_t* bad, Sums& sums) {
#pragma unroll 4
  for (int at = group.number; at < size; at += group.groups) {
    float v[8];
    load8(row_of(job, job.v, job.first + tokens[at], head), job.v.type, group.i, v);
    bool finite = true;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      finite = finite && fabsf(v[e]) < INFINITY;
      sums.v[e] += v[e];
    }
    if (!finite) atomicMin(bad, static_cast<unsigned>(tokens[at]));
  }
}

// One thread block a cluster.
__global__ void __launch_bounds__(kClusterThreads, 8) finish_kernel(const __grid_constant__ Batch batch) {
  __shared__ __align__(16) ClusterShared shared;
  const int problem = blockIdx.y;
  const int c = blockIdx.x;
  const int head = problem % batch.heads;
  const Job& job = batch.jobs[problem / batch.heads];
  if (c >= job.count || batch.work.fault[problem / batch.heads] != 0) return;
  const Work& work = batch.work;
  const DeviceIndex& index = job.index;
  const std::int64_t slot = slot_of(job, batch.heads, head);
  const int place = first_place(job, slot);
  const int column = first_column(job, slot) + c;
  const std::int64_t at = slot * index.capacity + column;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const std::int32_t* begin = work.begin + static_cast<std::int64_t>(problem) * (batch.columns + 1);
  const int first = begin[c];
  const int size = begin[c + 1] - first;
  const float inverse = 1.0f / static_cast<float>(size);
  const std::int32_t* tokens = sort_tokens(work.order + rows + first, size, work.nearest + rows, job.n, c, shared);

  const Group keys(batch.dim);
  const Group values(batch.v_dim);
  Sums sums;
  if (keys.works()) add_keys(job, head, work.y + rows * batch.dim, batch.dim, tokens, size, keys, sums);
  if (values.works()) add_values(job, head, tokens, size, values, &work.state[problem].bad_v, sums);
  std::int32_t* out = index.tokens + slot * index.token_capacity + place + first;
  for (int i = threadIdx.x; i < size; i += kClusterThreads) out[i] = job.first + tokens[i];
  if (threadIdx.x == 0) index.begin[slot * (index.capacity + 64) + column] = place + first;

  mean_of_groups(sums.k, keys, batch.dim, inverse * job.k.scale, shared.partial, shared.mean);
  float* mean_k = work.mean_k + (static_cast<std::int64_t>(problem) * batch.columns + c) * batch.dim;
  for (int i = threadIdx.x; i < batch.dim; i += kClusterThreads) {
    mean_k[i] = shared.mean[i];
    if (!batch.int8_centroids) index.centroid16[at * batch.dim + i] = __bfloat16_as_ushort(__float2bfloat16_rn(shared.mean[i]));
  }
  if (batch.int8_centroids)
    store_int8(shared.mean, batch.dim, index.centroid8 + at * batch.dim, index.centroid_scale + at, shared);
  __syncthreads();

  // sum |y - mean|^2 = sum |y - base|^2 - size |mean - base|^2: the base is in the cluster, so that little cancels
  mean_of_groups(sums.y, keys, batch.dim, inverse, shared.partial, shared.mean);
  float square = sums.square;
  for (int i = threadIdx.x; i < batch.dim; i += kClusterThreads)
    square -= static_cast<float>(size) * shared.mean[i] * shared.mean[i];
  square = reduce(square, shared, add);
  if (threadIdx.x == 0) index.spread[at] = fmaxf(square, 0.0f) * inverse * work.state[problem].spread_scale;

  mean_of_groups(sums.v, values, batch.v_dim, inverse * job.v.scale, shared.partial, shared.mean);
  store_int8(shared.mean, batch.v_dim, index.mean_v + at * batch.v_dim, index.mean_v_scale + at, shared);
}

// ---- covariance --------------------------------------------------------------------------------------------------------

constexpr int kTokens = 64;  // of a step

// Rows of the result that a warp makes, columns of one thread block, and its warps.
template <int kDim>
struct Shape16 {
  static constexpr int kRowTiles = kDim == 256 ? 2 : 1;
  static constexpr int kColumns = kDim == 256 ? 128 : kDim;
  static constexpr int kWarps = kDim / 16 / kRowTiles;
  static constexpr int kStride = kDim + 8;  // f16; an odd number of 16-byte chunks, so that ldmatrix meets no bank twice
};

// products [piece] = sum of r r^T over a piece's tokens, r = (k - mean K of its cluster) * scale.
template <int kDim>
__global__ void __launch_bounds__(Shape16<kDim>::kWarps * 32, kDim == 256 ? 1 : 2)
    covariance_kernel(const __grid_constant__ Batch batch) {
  using S = Shape16<kDim>;
  __shared__ __align__(16) __half tile[kTokens * S::kStride];
  const int problem = blockIdx.y;
  const int head = problem % batch.heads;
  const Job& job = batch.jobs[problem / batch.heads];
  const Work& work = batch.work;
  if (work.fault[problem / batch.heads] != 0) return;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const float* mean_k = work.mean_k + static_cast<std::int64_t>(problem) * batch.columns * kDim;
  const float scale = work.state[problem].scale;
  const int first = static_cast<int>(static_cast<std::int64_t>(job.n) * blockIdx.x / batch.pieces);
  const int last = static_cast<int>(static_cast<std::int64_t>(job.n) * (blockIdx.x + 1) / batch.pieces);
  const int lane = threadIdx.x % 32;
  const int m = threadIdx.x / 32 * (16 * S::kRowTiles);
  const int n = blockIdx.z * S::kColumns;
  const unsigned shared = shared_address(tile);

  float sums[S::kRowTiles][S::kColumns / 8][4] = {};
  for (int start = first; start < last; start += kTokens) {
    constexpr int kChunks = kDim / 8;
    for (int at = threadIdx.x; at < kTokens * kChunks; at += S::kWarps * 32) {
      const int token = start + at / kChunks;
      const int i = at % kChunks * 8;
      uint4 bits = make_uint4(0, 0, 0, 0);
      if (token < last) {
        float x[8];
        load8(row_of(job, job.k, job.first + token, head), job.k.type, i, x);
        const float* mean = mean_k + static_cast<std::int64_t>(work.nearest[rows + token]) * kDim + i;
        const float4 low = *reinterpret_cast<const float4*>(mean);
        const float4 high = *reinterpret_cast<const float4*>(mean + 4);
        const float means[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int e = 0; e < 8; ++e) x[e] = (x[e] * job.k.scale - means[e]) * scale;
        bits = make_uint4(pack_half(x[0], x[1]), pack_half(x[2], x[3]), pack_half(x[4], x[5]), pack_half(x[6], x[7]));
      }
      *reinterpret_cast<uint4*>(tile + at / kChunks * S::kStride + i) = bits;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTokens; k += 16) {
      unsigned a[S::kRowTiles][4];
#pragma unroll
      for (int r = 0; r < S::kRowTiles; ++r) {
        const int token = k + (lane >> 4) * 8 + lane % 8;
        const int i = m + 16 * r + ((lane >> 3) & 1) * 8;
        load_matrices_transposed(shared + (token * S::kStride + i) * 2, a[r]);
      }
#pragma unroll
      for (int j = 0; j < S::kColumns / 16; ++j) {
        unsigned b[4];
        const int token = k + ((lane >> 3) & 1) * 8 + lane % 8;
        const int i = n + 16 * j + (lane >> 4) * 8;
        load_matrices_transposed(shared + (token * S::kStride + i) * 2, b);
#pragma unroll
        for (int r = 0; r < S::kRowTiles; ++r) {
          multiply(a[r], b[0], b[1], sums[r][2 * j]);
          multiply(a[r], b[2], b[3], sums[r][2 * j + 1]);
        }
      }
    }
    __syncthreads();
  }
  float* out = work.products + (static_cast<std::int64_t>(problem) * batch.pieces + blockIdx.x) * kDim * kDim;
#pragma unroll
  for (int r = 0; r < S::kRowTiles; ++r) {
#pragma unroll
    for (int j = 0; j < S::kColumns / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m + 16 * r + lane / 4 + 8 * half;
        const float2 pair = make_float2(sums[r][j][2 * half], sums[r][j][2 * half + 1]);
        *reinterpret_cast<float2*>(out + row * kDim + n + 8 * j + lane % 4 * 2) = pair;
      }
    }
  }
}

// Sum of size * spread over columns [first, last) of a slot; `begin` names places.
__device__ float total_spread(const DeviceIndex& index, std::int64_t slot, int first, int last, const std::int32_t* begin,
                              float* shared) {
  float sum = 0;
  for (int c = first + threadIdx.x; c < last; c += 256) {
    sum += index.spread[slot * index.capacity + c] * static_cast<float>(begin[c + 1 - first] - begin[c - first]);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int warp = 0; warp < 8; ++warp) sum += shared[warp];
  return sum;
}

// One element of a part's shape a thread: covariance over mean spread, pooled with what the part held.
__global__ void __launch_bounds__(256) shape_kernel(const __grid_constant__ Batch batch) {
  __shared__ float shared[8];
  const int problem = blockIdx.y;
  const int head = problem % batch.heads;
  const Job& job = batch.jobs[problem / batch.heads];
  const Work& work = batch.work;
  if (job_fault(batch, problem / batch.heads) != 0) return;
  const DeviceIndex& index = job.index;
  const std::int64_t slot = slot_of(job, batch.heads, head);
  const int column = first_column(job, slot);
  const PartChoice choice = part_of(job);
  const std::int32_t* begin = work.begin + static_cast<std::int64_t>(problem) * (batch.columns + 1);
  float spread = total_spread(index, slot, column, column + job.count, begin, shared);
  float before = 0;
  if (choice.merged) {
    const int first = index.part_begin[slot * (index.part_capacity + 1) + choice.part];
    before = total_spread(index, slot, first, column, index.begin + slot * (index.capacity + 64) + first, shared);
  }
  spread += before;

  const int at = blockIdx.x * 256 + threadIdx.x;
  const int i = at / batch.dim;
  const int j = at % batch.dim;
  const int square = batch.dim * batch.dim;
  const float* products =
      work.products + static_cast<std::int64_t>(problem) * batch.pieces * square + max(i, j) * batch.dim + min(i, j);
  float sum = 0;
  for (int piece = 0; piece < batch.pieces; ++piece) sum += products[static_cast<std::int64_t>(piece) * square];
  const float scale = work.state[problem].scale;
  sum /= scale * scale;
  std::uint16_t* out = index.shape + (slot * index.part_capacity + choice.part) * square + at;
  if (choice.merged) sum += before * __bfloat162float(__ushort_as_bfloat16(*out));
  *out = __bfloat16_as_ushort(__float2bfloat16_rn(spread > 0 ? sum / spread : 0.0f));
}

// One thread block a job: the counts of its slots, or its fault.
__global__ void __launch_bounds__(256) commit_kernel(const __grid_constant__ Batch batch) {
  const Job& job = batch.jobs[blockIdx.x];
  const DeviceIndex& index = job.index;
  const std::uint32_t fault = job_fault(batch, blockIdx.x);
  const PartChoice choice = part_of(job);
  const bool joins = job.append && index.parts[job.sequence] > 0;
  __syncthreads();  // all have read the slot
  if (fault != 0) {
    if (threadIdx.x == 0) atomicOr(job.status + job.sequence, fault);
    if (job.append) return;
    for (int head = threadIdx.x; head < batch.heads; head += 256) index.clusters[slot_of(job, batch.heads, head)] = 0;
    if (threadIdx.x == 0) {
      index.parts[job.sequence] = 0;
      index.range[2 * job.sequence] = index.range[2 * job.sequence + 1] = 0;
    }
    return;
  }
  for (int head = 0; head < batch.heads; ++head) {
    const std::int64_t slot = slot_of(job, batch.heads, head);
    const int column = first_column(job, slot);
    const int end = column + job.count;
    const int place = first_place(job, slot) + job.n;
    const int padded = min((end + 63) / 64 * 64, index.capacity);
    __syncthreads();
    for (int c = end + threadIdx.x; c < padded; c += 256) {
      const std::int64_t at = slot * index.capacity + c;
      if (batch.int8_centroids) index.centroid_scale[at] = 0;
      index.spread[at] = 0;
      index.mean_v_scale[at] = 0;
    }
    if (!batch.int8_centroids) {
      for (int i = threadIdx.x; i < (padded - end) * batch.dim; i += 256) {
        index.centroid16[(slot * index.capacity + end) * batch.dim + i] = 0;
      }
    }
    for (int c = end + threadIdx.x; c <= padded; c += 256) index.begin[slot * (index.capacity + 64) + c] = place;
    if (threadIdx.x == 0) {
      std::int32_t* part_begin = index.part_begin + slot * (index.part_capacity + 1);
      if (!choice.merged) part_begin[choice.part] = column;
      part_begin[choice.part + 1] = end;
      index.clusters[slot] = end;
    }
  }
  if (threadIdx.x == 0) {
    index.parts[job.sequence] = choice.part + 1;
    if (!joins) index.range[2 * job.sequence] = job.first;
    index.range[2 * job.sequence + 1] = job.first + job.n;
  }
}

template <int kDim>
void covariance_of(const Batch& batch, cudaStream_t stream) {
  using S = Shape16<kDim>;
  const dim3 grid(static_cast<unsigned>(batch.pieces), static_cast<unsigned>(batch.job_count * batch.heads), kDim / S::kColumns);
  launch("covariance", covariance_kernel<kDim>, {grid, S::kWarps * 32}, stream, batch);
}

}  // namespace

void finish_clusters(const Batch& batch, cudaStream_t stream) {
  const auto problems = static_cast<unsigned>(batch.job_count * batch.heads);
  launch("finish_clusters", finish_kernel, {dim3(static_cast<unsigned>(batch.columns), problems), kClusterThreads}, stream,
         batch);
  switch (batch.dim) {
    case 64:
      covariance_of<64>(batch, stream);
      break;
    case 80:
      covariance_of<80>(batch, stream);
      break;
    case 96:
      covariance_of<96>(batch, stream);
      break;
    case 128:
      covariance_of<128>(batch, stream);
      break;
    default:
      covariance_of<256>(batch, stream);
  }
  launch("shape", shape_kernel, {dim3(static_cast<unsigned>(batch.dim * batch.dim / 256), problems), 256}, stream, batch);
}

void commit(const Batch& batch, cudaStream_t stream) {
  launch("commit", commit_kernel, {static_cast<unsigned>(batch.job_count), 256}, stream, batch);
}

}  // namespace tactic::cuda
