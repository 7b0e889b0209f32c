// Every token's nearest centroid on any tensor core since sm_80: products of a warp's tokens, held in registers, with tiles of
// centroids that pass through shared memory, and the arg-max taken from the accumulators. Nothing of size n x C is ever stored.
#include "cluster/cuda_batch.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kStageClusters = 64;  // half a tile
constexpr int kStages = 3;

__device__ __forceinline__ void copy_async(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}

template <int kDim>
constexpr int kStageBytes = (kDim + 63) / 64 * kStageClusters * 128;

// Centroids s * kStageClusters .. of a problem into a stage of shared memory.
template <int kDim>
__device__ __forceinline__ void fetch(const std::byte* tiles, int s, unsigned stage) {
  const std::byte* tile =
      tiles + static_cast<std::int64_t>(s / 2) * tile_bytes(kTileClusters, kDim) + s % 2 * (kStageClusters * 128);
  for (int i = threadIdx.x; i < kStageBytes<kDim> / 16; i += kWarps * 32) {
    const int panel = i / (kStageClusters * 8);
    copy_async(stage + i * 16, tile + panel * (kTileClusters * 128) + i % (kStageClusters * 8) * 16);
  }
}

// kRowTiles * 16 tokens a warp.
template <int kDim, int kRowTiles>
__global__ void __launch_bounds__(kWarps * 32, 2) assign_kernel(const __grid_constant__ Batch batch, int iteration) {
  extern __shared__ __align__(128) std::byte stages[];
  constexpr int kSteps = kDim / 16;
  const int problem = blockIdx.y;
  const Job& job = batch.jobs[problem / batch.heads];
  const int first = blockIdx.x * (kWarps * 16 * kRowTiles);
  const Work& work = batch.work;
  if (first >= job.n || work.state[problem].done_at < iteration) return;
  const int lane = threadIdx.x % 32;
  const int t = lane % 4;
  const int row = first + threadIdx.x / 32 * (16 * kRowTiles) + lane / 4;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const std::int64_t columns = static_cast<std::int64_t>(problem) * batch.columns;
  const std::byte* tiles = work.tiles + columns / kTileClusters * tile_bytes(kTileClusters, kDim);
  const float* bias = work.bias + columns;

  const unsigned shared = shared_address(stages);
  const int stage_count = (clusters_of(batch, job, iteration) + kStageClusters - 1) / kStageClusters;
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < stage_count) fetch<kDim>(tiles, s, shared + s * kStageBytes<kDim>);
    asm volatile("cp.async.commit_group;");
  }

  unsigned a[kRowTiles][kSteps][4];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const __half* y = work.y + (rows + row + 16 * r + 8 * half) * kDim;
#pragma unroll
      for (int block = 0; block < kDim / 32; ++block) {
        const uint4 x = *reinterpret_cast<const uint4*>(y + 32 * block + 8 * t);
        a[r][2 * block][half] = x.x;
        a[r][2 * block][half + 2] = x.y;
        a[r][2 * block + 1][half] = x.z;
        a[r][2 * block + 1][half + 2] = x.w;
      }
      if constexpr (kDim % 32 != 0) {
        const uint2 x = *reinterpret_cast<const uint2*>(y + kDim - 16 + 4 * t);
        a[r][kSteps - 1][half] = x.x;
        a[r][kSteps - 1][half + 2] = x.y;
      }
    }
  }

  float best[kRowTiles][2];
  int nearest[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    best[r][0] = best[r][1] = -INFINITY;
    nearest[r][0] = nearest[r][1] = 0;
  }
  for (int s = 0; s < stage_count; ++s) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    if (s + kStages - 1 < stage_count) {
      fetch<kDim>(tiles, s + kStages - 1, shared + (s + kStages - 1) % kStages * kStageBytes<kDim>);
    }
    asm volatile("cp.async.commit_group;");
    const unsigned stage = shared + s % kStages * kStageBytes<kDim>;
#pragma unroll
    for (int n = 0; n < kStageClusters; n += 16) {
      const int column = s * kStageClusters + n + 2 * t;
      float2 offset[2];
      offset[0] = __ldg(reinterpret_cast<const float2*>(bias + column));
      offset[1] = __ldg(reinterpret_cast<const float2*>(bias + column + 8));
      float sums[kRowTiles][2][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        unsigned b[4];
        load_matrices(tile_address(stage, kStageClusters, n, 16 * step, lane), b);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          multiply(a[r][step], b[0], b[1], sums[r][0]);
          multiply(a[r][step], b[2], b[3], sums[r][1]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {  // ascending clusters for each of two tokens
          const int half = e / 4;
          const int j = e / 2 % 2;
          const float score = sums[r][j][2 * half + e % 2] + (e % 2 == 0 ? offset[j].x : offset[j].y);
          if (score > best[r][half]) {
            best[r][half] = score;
            nearest[r][half] = column + 8 * j + e % 2;
          }
        }
      }
    }
  }

  int moved = 0;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) {
        const float other = __shfl_xor_sync(~0u, best[r][half], step);
        const int where = __shfl_xor_sync(~0u, nearest[r][half], step);
        if (other > best[r][half] || (other == best[r][half] && where < nearest[r][half])) {
          best[r][half] = other;
          nearest[r][half] = where;
        }
      }
      const int token = row + 16 * r + 8 * half;
      if (t == 0 && token < job.n) {
        moved += work.nearest[rows + token] != nearest[r][half];
        work.nearest[rows + token] = nearest[r][half];
        work.score[rows + token] = best[r][half];
        atomicAdd(&work.sizes[columns + nearest[r][half]], 1);
      }
    }
  }
  moved = __reduce_add_sync(~0u, moved);
  if (lane == 0 && moved > 0) atomicAdd(&work.state[problem].moved, moved);
}

template <int kDim, int kRowTiles>
void assign_of(const Batch& batch, int iteration, cudaStream_t stream) {
  constexpr int kTokens = kWarps * 16 * kRowTiles;
  constexpr int kBytes = kStages * kStageBytes<kDim>;
  check(cudaFuncSetAttribute(assign_kernel<kDim, kRowTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "assign_tokens");
  const auto problems = static_cast<unsigned>(batch.job_count * batch.heads);
  launch("assign_tokens", assign_kernel<kDim, kRowTiles>,
         {dim3(static_cast<unsigned>(batch.rows / kTokens), problems), kWarps * 32, kBytes}, stream, batch, iteration);
}

}  // namespace

void assign_tokens(const Batch& batch, int iteration, cudaStream_t stream) {
  with_dim(batch.dim, [&]<int kDim>() { assign_of<kDim, kDim <= 128 ? 2 : 1>(batch, iteration, stream); });
}

}  // namespace tactic::cuda
