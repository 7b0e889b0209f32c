// Sums of outer products of residuals k - mean K of its cluster, by tensor cores, in pieces of a problem's tokens.
#include "cluster/cuda_cluster.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kTokens = 32;  // of a step

// Rows of the result that a warp makes, columns of one thread block, and its warps.
template <int kDim>
struct Shape16 {
  static constexpr int kRowTiles = kDim == 256 ? 2 : 1;
  static constexpr int kColumns = kDim == 256 ? 128 : kDim;
  static constexpr int kWarps = kDim / 16 / kRowTiles;
  static constexpr int kStride = kDim + 8;  // f16; an odd number of 16-byte chunks, so that ldmatrix meets no bank twice
};

// A thread's chunk of 8 elements on its way into a tile: what the cache holds, and its cluster's centred mean.
struct Chunk {
  Raw8 key;
  uint4 mean = make_uint4(0, 0, 0, 0);
  bool there = false;
};
// (k - origin) * scale - mean; zero where there is no token. origin: of these elements.
__device__ __forceinline__ uint4 residual(const Chunk& chunk, const DeviceRows& rows, const float* origin, float scale) {
  if (!chunk.there) return make_uint4(0, 0, 0, 0);
  float x[8];
  decode(chunk.key, rows.type, x);
  const unsigned words[4] = {chunk.mean.x, chunk.mean.y, chunk.mean.z, chunk.mean.w};
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    const float2 mean = unpack_half(words[e / 2]);
    x[e] = (x[e] * rows.scale - origin[e]) * scale - mean.x;
    x[e + 1] = (x[e + 1] * rows.scale - origin[e + 1]) * scale - mean.y;
  }
  return pack_row(x);
}

// products [piece] = sum of r r^T over a piece's tokens, r = (k - mean K of its cluster) * scale. The next step's rows are on
// their way into registers while the tensor cores work.
template <int kDim>
__global__ void __launch_bounds__(Shape16<kDim>::kWarps * 32, kDim == 256 ? 1 : 2)
    covariance_kernel(const __grid_constant__ Batch batch) {
  using S = Shape16<kDim>;
  __shared__ __align__(16) __half tiles[2][kTokens * S::kStride];
  __shared__ float origin[kDim];
  constexpr int kThreads = S::kWarps * 32;
  constexpr int kChunks = kDim / 8;
  constexpr int kShare = kTokens * kChunks / kThreads;  // 16-byte chunks a thread
  static_assert(kShare * kThreads == kTokens * kChunks);
  const int problem = blockIdx.y;
  const int head = problem % batch.heads;
  const Job& job = batch.jobs[problem / batch.heads];
  const Work& work = batch.work;
  if (work.fault[problem / batch.heads] != 0) return;
  const std::int64_t rows = static_cast<std::int64_t>(problem) * batch.rows;
  const __half* mean_k = work.mean_k + static_cast<std::int64_t>(problem) * batch.columns * kDim;
  const float scale = work.state[problem].scale;
  const int first = static_cast<int>(static_cast<std::int64_t>(job.n) * blockIdx.x / batch.pieces);
  const int last = static_cast<int>(static_cast<std::int64_t>(job.n) * (blockIdx.x + 1) / batch.pieces);
  const int lane = threadIdx.x % 32;
  const int m = threadIdx.x / 32 * (16 * S::kRowTiles);
  const int n = blockIdx.z * S::kColumns;
  for (int i = threadIdx.x; i < kDim; i += kThreads) origin[i] = work.origin[static_cast<std::int64_t>(problem) * kDim + i];
  __syncthreads();

  // Clusters of the tokens one step ahead of the chunks, so that no address waits for them.
  const auto token_of = [&](int start, int j) { return start + (static_cast<int>(threadIdx.x) + j * kThreads) / kChunks; };
  const auto element_of = [&](int j) { return (static_cast<int>(threadIdx.x) + j * kThreads) % kChunks * 8; };
  Chunk chunks[kShare];
  int owners[kShare];
  const auto load_owners = [&](int start) {
#pragma unroll
    for (int j = 0; j < kShare; ++j) owners[j] = token_of(start, j) < last ? work.nearest[rows + token_of(start, j)] : 0;
  };
  const auto load = [&](int start) {
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      chunks[j].there = token_of(start, j) < last;
      if (!chunks[j].there) continue;
      chunks[j].key = load_raw(row_of(job, job.k, job.first + token_of(start, j), head), job.k.type, element_of(j));
      chunks[j].mean = *reinterpret_cast<const uint4*>(mean_k + static_cast<std::int64_t>(owners[j]) * kDim + element_of(j));
    }
    load_owners(start + kTokens);
  };
  float sums[S::kRowTiles][S::kColumns / 8][4] = {};
  load_owners(first);
  load(first);
  int parity = 0;
  for (int start = first; start < last; start += kTokens, parity ^= 1) {
    __half* tile = tiles[parity];
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      const int at = static_cast<int>(threadIdx.x) + j * kThreads;
      *reinterpret_cast<uint4*>(tile + at / kChunks * S::kStride + at % kChunks * 8) =
          residual(chunks[j], job.k, origin + element_of(j), scale);
    }
    __syncthreads();  // the other tile is free: all have passed its products
    load(start + kTokens);
    const unsigned shared = shared_address(tile);
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

template <int kDim>
void covariance_of(const Batch& batch, cudaStream_t stream) {
  using S = Shape16<kDim>;
  const dim3 grid(static_cast<unsigned>(batch.pieces), static_cast<unsigned>(batch.job_count * batch.heads), kDim / S::kColumns);
  launch("covariance", covariance_kernel<kDim>, {grid, S::kWarps * 32}, stream, batch);
}

}  // namespace

void pool_covariance(const Batch& batch, cudaStream_t stream) {
  with_dim(batch.dim, [&]<int kDim>() { covariance_of<kDim>(batch, stream); });
}

}  // namespace tactic::cuda
