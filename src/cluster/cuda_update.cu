// Between two assignments: sizes of the clusters, repair of empty ones, tokens by cluster (a counting sort), new centroids.
#include "cluster/cuda_cluster.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kSettleThreads = 1024;

// Each warp's farthest token from its centroid, among clusters of two or more; (-1, n) where it has none.
struct Farthest {
  float distance;
  int token;
};
__device__ __forceinline__ bool farther(const Farthest& a, const Farthest& b) {
  return a.distance > b.distance || (a.distance == b.distance && a.token < b.token);
}
__device__ Farthest farthest_of(Farthest x) {
  for (int step = 16; step > 0; step /= 2) {
    const Farthest other{__shfl_xor_sync(~0u, x.distance, step), __shfl_xor_sync(~0u, x.token, step)};
    if (farther(other, x)) x = other;
  }
  return x;
}
__device__ Farthest scan_share(const float* norm, const float* score, const std::int32_t* nearest, const std::int32_t* sizes,
                               int n) {
  Farthest best{-1, n};
  for (int token = threadIdx.x; token < n; token += kSettleThreads) {
    if (sizes[nearest[token]] < 2) continue;
    const Farthest now{fmaxf(0.0f, norm[token] - 2 * score[token]), token};
    if (farther(now, best)) best = now;
  }
  return farthest_of(best);
}

// As repair_empty(): each empty cluster, ascending, takes the farthest token. After a move only the shares of warps whose
// candidate went or whose candidate's cluster shrank to one are scanned again.
__device__ void repair(const float* norm, const float* score, std::int32_t* nearest, std::int32_t* sizes, int n, int count) {
  __shared__ Farthest candidates[32];
  __shared__ int chosen;
  const int warp = threadIdx.x / 32;
  Farthest mine = scan_share(norm, score, nearest, sizes, n);
  for (int c = 0; c < count; ++c) {
    if (sizes[c] != 0) continue;  // the same for all threads: only this loop changes sizes, between barriers
    if (threadIdx.x % 32 == 0) candidates[warp] = mine;
    __syncthreads();
    if (warp == 0) {
      const Farthest best = farthest_of(candidates[threadIdx.x]);
      if (threadIdx.x == 0) {
        chosen = best.token;
        --sizes[nearest[best.token]];
        sizes[c] = 1;
        nearest[best.token] = c;
      }
    }
    __syncthreads();
    const bool stale = mine.token < n && (mine.token == chosen || sizes[nearest[mine.token]] < 2);
    if (stale) mine = scan_share(norm, score, nearest, sizes, n);
    __syncthreads();
  }
}

// One thread block a problem: repair, begin and cursor from sizes, whether this was the last iteration.
__global__ void __launch_bounds__(kSettleThreads) settle_kernel(const __grid_constant__ Batch batch, int iteration) {
  __shared__ int warp_sums[32];
  const int problem = blockIdx.x;
  const Job& job = batch.jobs[problem / batch.heads];
  const Work& work = batch.work;
  ProblemState& state = work.state[problem];
  if (iteration == 0 && problem % batch.heads == 0 && threadIdx.x == 0) {
    work.fault[problem / batch.heads] = job_fault(batch, problem / batch.heads);
  }
  if (state.done_at < iteration) return;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const std::int64_t columns = static_cast<std::int64_t>(problem) * batch.columns;
  std::int32_t* sizes = work.sizes + columns;
  std::int32_t* begin = work.begin + static_cast<std::int64_t>(problem) * (batch.columns + 1);

  bool empty = false;
  for (int c = threadIdx.x; c < job.count; c += kSettleThreads) empty = empty || sizes[c] == 0;
  if (__syncthreads_or(empty)) repair(work.norm + rows, work.score + rows, work.nearest + rows, sizes, job.n, job.count);
  if (threadIdx.x == 0) {
    if (iteration == batch.iterations || state.moved == 0) state.done_at = iteration;
    state.moved = 0;
    state.large = 0;
  }

  int base = 0;
  const int lane = threadIdx.x % 32;
  for (int start = 0; start < job.count; start += kSettleThreads) {
    const int c = start + threadIdx.x;
    const int size = c < job.count ? sizes[c] : 0;
    int sum = size;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    int before = warp_sums[lane];
    const int all = __reduce_add_sync(~0u, before);
    before = __reduce_add_sync(~0u, lane < static_cast<int>(threadIdx.x / 32) ? before : 0);
    if (c < job.count) {
      begin[c] = base + before + sum - size;
      work.cursor[columns + c] = base + before + sum - size;
      sizes[c] = 0;  // for the next iteration
      if (size > kWarpTokens) work.large[columns + atomicAdd(&state.large, 1)] = c;
    }
    base += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) begin[job.count] = base;
}

// Tokens to their clusters, in any order inside one.
__global__ void __launch_bounds__(256) scatter_kernel(const __grid_constant__ Batch batch, int iteration) {
  const int problem = blockIdx.y;
  const Work& work = batch.work;
  const int token = blockIdx.x * 256 + threadIdx.x;
  if (token >= batch.jobs[problem / batch.heads].n || work.state[problem].done_at < iteration) return;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const int c = work.nearest[rows + token];
  const int place = atomicAdd(&work.cursor[static_cast<std::int64_t>(problem) * batch.columns + c], 1);
  work.order[rows + place] = token;
}

// The mean of each cluster's y, rounded to f16, and the bias that belongs to the rounded one.
template <int kDim>
__global__ void __launch_bounds__(kClusterThreads) update_kernel(const __grid_constant__ Batch batch, int iteration) {
  __shared__ __align__(16) ClusterShared shared;
  using L = Lanes<kDim>;
  const int problem = blockIdx.y;
  const Work& work = batch.work;
  if (work.state[problem].done_at <= iteration) return;
  const __half* y = work.y + static_cast<std::int64_t>(problem) * batch.rows * kDim + L::element();
  for_clusters(batch, problem, shared, [&](const Crew& crew, int c, int, int size, const std::int32_t* tokens) {
    float sum[8] = {};
    for_tokens<kDim>(crew, tokens, size, [&](int token) {
      float x[8];
      load_y(y + static_cast<std::int64_t>(token) * kDim, x);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += x[e];
    });
    sum_of_crew<kDim>(crew, sum, shared);
    const float inverse = 1.0f / static_cast<float>(size);
    const std::int64_t column = static_cast<std::int64_t>(problem) * batch.columns + c;
    std::byte* tile = work.tiles + column / kTileClusters * tile_bytes(kTileClusters, kDim);
    float square = 0;
    if (L::holds_row() && crew.number == 0) {
#pragma unroll
      for (int e = 0; e < 8; e += 2) {
        const unsigned bits = pack_half(sum[e] * inverse, sum[e + 1] * inverse);
        *reinterpret_cast<unsigned*>(tile + tile_offset(c % kTileClusters, kTileClusters, L::element() + e, kDim)) = bits;
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&bits));
        square += pair.x * pair.x + pair.y * pair.y;
      }
    }
    square = sum_of_warp(square);
    if (threadIdx.x % 32 == 0 && crew.number == 0) work.bias[column] = -0.5f * square;
  });
}

template <int kDim>
void update_of(const Batch& batch, int iteration, cudaStream_t stream) {
  launch("update_centroids", update_kernel<kDim>, {grid_of_clusters(batch), kClusterThreads}, stream, batch, iteration);
}

}  // namespace

void settle_clusters(const Batch& batch, int iteration, cudaStream_t stream) {
  const auto problems = static_cast<unsigned>(batch.job_count * batch.heads);
  launch("settle_clusters", settle_kernel, {problems, kSettleThreads}, stream, batch, iteration);
  launch("scatter", scatter_kernel, {dim3(static_cast<unsigned>(batch.rows / 256), problems), 256}, stream, batch, iteration);
}

void update_centroids(const Batch& batch, int iteration, cudaStream_t stream) {
  with_dim(batch.dim, [&]<int kDim>() { update_of<kDim>(batch, iteration, stream); });
}

}  // namespace tactic::cuda
