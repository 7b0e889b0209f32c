// Between two assignments: sizes of the clusters, tokens for empty ones, tokens by cluster (a counting sort), new centroids.
#include "cluster/cuda_cluster.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kSettleThreads = 1024;

// x summed over the threads before this one, and over all of them. Two barriers.
struct Prefix {
  int before;
  int all;
};
__device__ Prefix prefix_sum(int x, int (&warp_sums)[32]) {
  const int lane = threadIdx.x % 32;
  int sum = x;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == 31) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  const int of_warp = warp_sums[lane];
  const int all = __reduce_add_sync(~0u, of_warp);
  const int before = __reduce_add_sync(~0u, lane < static_cast<int>(threadIdx.x / 32) ? of_warp : 0);
  return {before + sum - x, all};
}

struct SettleShared {
  int counts[256 * 32];
  int warp_sums[32];
  int found[2];
};

// What is known of a distance sought by its rank among many: its highest bits, and its rank among those that agree in them.
struct Sought {
  unsigned bits = 0;
  int rank;
};

// The kBins bits from kShift on, too, by counting; all distances whose sign is set are passed over. Each lane counts into one of
// kCopies: where many are equal, a warp would otherwise add to one word.
template <int kShift, int kBins, int kCopies>
__device__ void find_digit(const float* distance, int n, Sought& sought, SettleShared& shared) {
  static_assert(kBins * kCopies <= static_cast<int>(sizeof(shared.counts) / sizeof(int)));
  const int thread = threadIdx.x;
  for (int i = thread; i < kBins * kCopies; i += kSettleThreads) shared.counts[i] = 0;
  __syncthreads();
#pragma unroll 4
  for (int token = thread; token < n; token += kSettleThreads) {
    const unsigned bits = __float_as_uint(distance[token]) >> kShift;
    if (bits / kBins == sought.bits) atomicAdd(&shared.counts[bits % kBins * kCopies + thread % kCopies], 1);
  }
  __syncthreads();
  const auto count_of = [&](int bin) {
    int count = 0;
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) count += shared.counts[bin * kCopies + (copy + thread) % kCopies];
    return count;
  };
  // Bins from the largest on, some to a thread.
  constexpr int kEach = (kBins + kSettleThreads - 1) / kSettleThreads;
  const int top = kBins - 1 - thread * kEach;
  int sum = 0;
  for (int bin = top; bin >= 0 && bin > top - kEach; --bin) sum += count_of(bin);
  int before = prefix_sum(sum, shared.warp_sums).before;
  if (before < sought.rank && sought.rank <= before + sum) {  // one thread
    int bin = top;
    for (int count = count_of(bin); before + count < sought.rank; count = count_of(--bin)) before += count;
    shared.found[0] = bin;
    shared.found[1] = sought.rank - before;
  }
  __syncthreads();
  sought.bits = sought.bits * kBins + static_cast<unsigned>(shared.found[0]);
  sought.rank = shared.found[1];
}

// score [n] from scores to squared distances from the centroid, but for the last token of each cluster to -1: the nearest one, of
// equal ones the highest.
__device__ void find_distances(const float* norm, float* score, const std::int32_t* nearest, std::uint64_t* kept, int n,
                               int count) {
  for (int c = threadIdx.x; c < count; c += kSettleThreads) kept[c] = ~std::uint64_t{0};
  __syncthreads();
  const auto rank_of = [&](float distance, int token) {
    return static_cast<std::uint64_t>(__float_as_uint(distance)) << 32 | ~static_cast<unsigned>(token);
  };
#pragma unroll 4
  for (int token = threadIdx.x; token < n; token += kSettleThreads) {
    const float distance = fabsf(fmaxf(norm[token] - 2 * score[token], 0.0f));
    score[token] = distance;
    atomicMin(reinterpret_cast<unsigned long long*>(&kept[nearest[token]]), rank_of(distance, token));
  }
  __syncthreads();
#pragma unroll 4
  for (int token = threadIdx.x; token < n; token += kSettleThreads) {
    if (kept[nearest[token]] == rank_of(score[token], token)) score[token] = -1;
  }
  __syncthreads();
}

// As repair_empty(): the `empty` clusters without a token, listed in `list`, take the farthest tokens, of equal ones the lowest.
// All at once: which of these clusters a token gets goes by its number, not by its distance.
__device__ void fill_empty(const float* distance, std::int32_t* nearest, std::int32_t* sizes, const std::int32_t* list, int empty,
                           int n, SettleShared& shared) {
  Sought nearest_gone;  // rank: how many of its distance go
  nearest_gone.rank = empty;
  find_digit<23, 256, 32>(distance, n, nearest_gone, shared);  // few exponents hold all
  find_digit<12, 2048, 1>(distance, n, nearest_gone, shared);
  find_digit<0, 4096, 1>(distance, n, nearest_gone, shared);
  const int limit = static_cast<int>(nearest_gone.bits);
  const int most_ties = nearest_gone.rank;

  // Each warp has tokens of its own, in order.
  const int lane = threadIdx.x % 32;
  const int share = (n + kSettleThreads - 1) / kSettleThreads * 32;
  const int first = static_cast<int>(threadIdx.x) / 32 * share;
  const int last = min(n, first + share);
  int beyond = 0;
  int equal = 0;
#pragma unroll 4
  for (int token = first + lane; token < last; token += 32) {
    const int bits = __float_as_int(distance[token]);
    beyond += bits > limit;
    equal += bits == limit;
  }
  beyond = prefix_sum(beyond, shared.warp_sums).before;
  equal = prefix_sum(equal, shared.warp_sums).before;
  int ties = __shfl_sync(~0u, equal, 0);  // before this warp's tokens, then before those looked at
  int place = __shfl_sync(~0u, beyond, 0) + min(ties, most_ties);
#pragma unroll 4
  for (int start = first; start < last; start += 32) {
    const int token = start + lane;
    const int bits = token < last ? __float_as_int(distance[token]) : -1;
    const unsigned below = (1u << lane) - 1;
    const unsigned tied = __ballot_sync(~0u, bits == limit);
    const bool goes = bits > limit || (bits == limit && ties + __popc(tied & below) < most_ties);
    const unsigned going = __ballot_sync(~0u, goes);
    if (goes) {
      const int c = list[place + __popc(going & below)];
      atomicSub(&sizes[nearest[token]], 1);
      nearest[token] = c;
      sizes[c] = 1;
    }
    ties += __popc(tied);
    place += __popc(going);
  }
  __syncthreads();
}

// One thread block a problem: empty clusters filled, those for outliers among them, begin and cursor from sizes, whether this was
// the last iteration.
__global__ void __launch_bounds__(kSettleThreads) settle_kernel(const __grid_constant__ Batch batch, int iteration) {
  __shared__ SettleShared shared;
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
  std::int32_t* cursor = work.cursor + columns;
  const int count = clusters_of(batch, job, iteration + 1);

  int empty = 0;
  for (int start = 0; start < count; start += kSettleThreads) {
    const int c = start + threadIdx.x;
    const bool is_empty = c < count && sizes[c] == 0;
    const Prefix places = prefix_sum(is_empty, shared.warp_sums);
    if (is_empty) cursor[empty + places.before] = c;
    empty += places.all;
  }
  if (empty > 0) {
    __syncthreads();
    find_distances(work.norm + rows, work.score + rows, work.nearest + rows, work.kept + columns, job.n, count);
    fill_empty(work.score + rows, work.nearest + rows, sizes, cursor, empty, job.n, shared);
  }
  if (threadIdx.x == 0) {
    // Tokens at rest do not end what has yet to take in outliers.
    if (iteration == batch.iterations || (state.moved == 0 && job.drawn == job.count)) state.done_at = iteration;
    state.moved = 0;
    state.large = 0;
  }

  int base = 0;
  for (int start = 0; start < count; start += kSettleThreads) {
    const int c = start + threadIdx.x;
    const int size = c < count ? sizes[c] : 0;
    const Prefix places = prefix_sum(size, shared.warp_sums);
    if (c < count) {
      begin[c] = base + places.before;
      cursor[c] = base + places.before;
      sizes[c] = 0;  // for the next iteration
      if (size > kWarpTokens) work.large[columns + atomicAdd(&state.large, 1)] = c;
    }
    base += places.all;
  }
  if (threadIdx.x == 0) begin[count] = base;
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
  for_clusters(batch, problem, clusters_of(batch, batch.jobs[problem / batch.heads], iteration + 1), shared,
               [&](const Crew& crew, int c, int, int size, const std::int32_t* tokens) {
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
                     *reinterpret_cast<unsigned*>(tile + tile_offset(c % kTileClusters, kTileClusters, L::element() + e, kDim)) =
                         bits;
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
