// From the clusters k-means found to columns of the index: tokens, centroids, spread, mean V, covariance, and at last the counts.
#include "cluster/cuda_cluster.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

// mean into int8: round(mean / scale), scale = max |mean| / 127. The first kDim / 8 lanes hold the row.
template <int kDim>
__device__ __forceinline__ void store_int8(const float (&mean)[8], std::int8_t* out, float* scale) {
  float largest = 0;
  if (Lanes<kDim>::holds_row()) {
#pragma unroll
    for (int e = 0; e < 8; ++e) largest = fmaxf(largest, fabsf(mean[e]));
  }
  largest = largest_of_warp(largest);
  const float inverse = largest > 1e-36f ? 127.0f / largest : 0.0f;
  if (Lanes<kDim>::holds_row()) {
    unsigned words[2] = {0, 0};
#pragma unroll
    for (int e = 0; e < 8; ++e) words[e / 4] |= (static_cast<unsigned>(__float2int_rn(mean[e] * inverse)) & 0xffu) << (e % 4 * 8);
    *reinterpret_cast<uint2*>(out + Lanes<kDim>::element()) = make_uint2(words[0], words[1]);
  }
  if (threadIdx.x % 32 == 0) *scale = inverse > 0 ? largest / 127.0f : 0.0f;
}

// Where a problem's clusters go.
struct Slot {
  __device__ Slot(const Batch& batch, int problem)
      : job(batch.jobs[problem / batch.heads]),
        head(problem % batch.heads),
        number(slot_of(job, batch.heads, head)),
        place(first_place(job, number)),
        column(number * job.index.capacity + first_column(job, number)) {}
  const Job& job;
  int head;
  std::int64_t number;
  int place;            // of the first token
  std::int64_t column;  // of the first cluster, in arrays of one entry a column
};

// Tokens, begin, centroid and spread of each cluster.
template <int kDim>
__global__ void __launch_bounds__(kClusterThreads) keys_kernel(const __grid_constant__ Batch batch) {
  __shared__ __align__(16) ClusterShared shared;
  using L = Lanes<kDim>;
  const int problem = blockIdx.y;
  const Work& work = batch.work;
  if (work.fault[problem / batch.heads] != 0) return;
  const Slot slot(batch, problem);
  const Job& job = slot.job;
  const DeviceIndex& index = job.index;
  const __half* y = work.y + static_cast<std::int64_t>(problem) * batch.rows * kDim + L::element();
  const float* origin = work.origin + static_cast<std::int64_t>(problem) * kDim + L::element();
  for_clusters(batch, problem, job.count, shared, [&](const Crew& crew, int c, int first, int size, const std::int32_t* tokens) {
    std::int32_t* out = index.tokens + slot.number * index.token_capacity + slot.place + first;
    for (int i = threadIdx.x % 32 + crew.number * 32; i < size; i += crew.count * 32) out[i] = job.first + tokens[i];

    float base[8];
    load_y(y + static_cast<std::int64_t>(tokens[0]) * kDim, base);
    float k[8] = {};
    float moved[8] = {};  // y less the first token's
    float square = 0;
    for_tokens<kDim>(crew, tokens, size, [&](int token) {
      float x[8];
      float now[8];
      load8(row_of(job, job.k, job.first + token, slot.head), job.k.type, L::element(), x);
      load_y(y + static_cast<std::int64_t>(token) * kDim, now);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        k[e] += x[e];
        const float difference = now[e] - base[e];
        moved[e] += difference;
        square += difference * difference;
      }
    });
    sum_of_crew<kDim>(crew, k, shared);
    sum_of_crew<kDim>(crew, moved, shared);
    square = sum_of_crew(crew, square, shared);
    if (crew.number != 0) return;

    // sum |y - mean|^2 = sum |y - base|^2 - size |mean - base|^2: the base is in the cluster, so that little cancels
    const float inverse = 1.0f / static_cast<float>(size);
    float shift = 0;
    const std::int64_t at = slot.column + c;
    if (L::holds_row()) {
      float centred[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        shift += moved[e] * moved[e] * inverse;
        k[e] *= inverse * job.k.scale;
        centred[e] = (k[e] - origin[e]) * work.state[problem].scale;
      }
      *reinterpret_cast<uint4*>(work.mean_k + (static_cast<std::int64_t>(problem) * batch.columns + c) * kDim + L::element()) =
          pack_row(centred);
    }
    square -= sum_of_warp(shift);
    if (threadIdx.x % 32 == 0) {
      index.spread[at] = fmaxf(square, 0.0f) * inverse * work.state[problem].spread_scale;
      index.begin[slot.number * 64 + at] = slot.place + first;
    }
    if (batch.int8_centroids) {
      store_int8<kDim>(k, index.centroid8 + at * kDim, index.centroid_scale + at);
    } else if (L::holds_row()) {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        index.centroid16[at * kDim + L::element() + e] = __bfloat16_as_ushort(__float2bfloat16_rn(k[e]));
    }
  });
}

// Mean V of each cluster.
template <int kDim>
__global__ void __launch_bounds__(kClusterThreads) values_kernel(const __grid_constant__ Batch batch) {
  __shared__ __align__(16) ClusterShared shared;
  using L = Lanes<kDim>;
  const int problem = blockIdx.y;
  if (batch.work.fault[problem / batch.heads] != 0) return;
  const Slot slot(batch, problem);
  const Job& job = slot.job;
  std::uint32_t* bad = &batch.work.state[problem].bad_v;
  for_clusters(batch, problem, job.count, shared, [&](const Crew& crew, int c, int, int size, const std::int32_t* tokens) {
    float v[8] = {};
    for_tokens<kDim>(crew, tokens, size, [&](int token) {
      float x[8];
      load8(row_of(job, job.v, job.first + token, slot.head), job.v.type, L::element(), x);
      bool finite = true;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        finite = finite && fabsf(x[e]) < INFINITY;
        v[e] += x[e];
      }
      if (!finite) atomicMin(bad, static_cast<unsigned>(token));
    });
    sum_of_crew<kDim>(crew, v, shared);
    if (crew.number != 0) return;
    const float factor = job.v.scale / static_cast<float>(size);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] *= factor;
    const std::int64_t at = slot.column + c;
    store_int8<kDim>(v, job.index.mean_v + at * kDim, job.index.mean_v_scale + at);
  });
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
void keys_of(const Batch& batch, cudaStream_t stream) {
  launch("finish_keys", keys_kernel<kDim>, {grid_of_clusters(batch), kClusterThreads}, stream, batch);
}

template <int kDim>
void values_of(const Batch& batch, cudaStream_t stream) {
  launch("finish_values", values_kernel<kDim>, {grid_of_clusters(batch), kClusterThreads}, stream, batch);
}

}  // namespace

void finish_clusters(const Batch& batch, cudaStream_t stream) {
  with_dim(batch.dim, [&]<int kDim>() { keys_of<kDim>(batch, stream); });
  with_dim(batch.v_dim, [&]<int kDim>() { values_of<kDim>(batch, stream); });
  pool_covariance(batch, stream);
  const dim3 grid(static_cast<unsigned>(batch.dim * batch.dim / 256), static_cast<unsigned>(batch.job_count * batch.heads));
  launch("shape", shape_kernel, {grid, 256}, stream, batch);
}

void commit(const Batch& batch, cudaStream_t stream) {
  launch("commit", commit_kernel, {static_cast<unsigned>(batch.job_count), 256}, stream, batch);
}

}  // namespace tactic::cuda
