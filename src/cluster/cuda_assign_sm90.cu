// Every token's nearest centroid on sm_90a: the products as wgmma, 256 tokens a thread block in the registers of two warpgroups,
// tiles of centroids streamed in by bulk copies. A tile is two steps of a warpgroup, each with sums of its own: maxima are taken
// from those of one step while the tensor cores work on the next.
#include "cluster/cuda_batch.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

constexpr int kGroups = 2;                     // warpgroups that multiply
constexpr int kThreads = (kGroups + 1) * 128;  // the last warpgroup only copies, and gives its registers to the others
constexpr unsigned kCodeBits =
    31;  // the low bits of a score give way to the number of its column: 32 columns of a tile are a thread's

// The two steps are two times 64 tokens, or, where 64 tokens fill the registers meant for operand a, the halves of a tile.
template <int kDim>
struct Steps {
  static constexpr int kRows = kDim <= 128 ? 2 : 1;
  static constexpr int kTokens = kGroups * 64 * kRows;
};

// Columns of a step. No member of Steps: other architectures than sm_90a use none, and nvcc warns of members without use.
template <int kDim>
inline constexpr int kStepColumns = Steps<kDim>::kRows == 2 ? kTileClusters : kTileClusters / 2;

// Bytes of a stage: a tile and its biases; a multiple of 1024, over which the swizzle repeats.
template <int kDim>
struct Stage {
  static constexpr int kTile = (kDim + 63) / 64 * kTileClusters * 128;
  static constexpr int kBytes = kTile + 1024;
  static constexpr int kTokens = Steps<kDim>::kTokens * kDim * 2;  // of the tokens' y, before the stages
  static constexpr int kFit = (226 * 1024 - kTokens - 1024) / kBytes;
  static constexpr int kCount = kFit < 6 ? kFit : 6;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ void init_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void expect_bytes(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void copy_bulk(unsigned to, const void* from, int bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(bytes), "r"(barrier)
               : "memory");
}

// A tile's operand from byte address `at` of shared memory: rows of 128 bytes, swizzled over 1024.
__device__ __forceinline__ std::uint64_t descriptor(unsigned at) {
  return (std::uint64_t{1} << 62) | (std::uint64_t{1024 >> 4} << 32) | (std::uint64_t{1} << 16) | ((at & 0x3ffff) >> 4);
}

// sums [64, 128] += a [64, 16] b [16, 128].
__device__ __forceinline__ void multiply_async(const unsigned (&a)[4], std::uint64_t b, float (&d)[64]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
        "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
        "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]),
        "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
        "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// sums [64, 64] += a [64, 16] b [16, 64].
__device__ __forceinline__ void multiply_async(const unsigned (&a)[4], std::uint64_t b, float (&d)[32]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
        "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <int kCount>
__device__ __forceinline__ void pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// Best of a thread's two tokens of a row tile: the score, whose low bits are the column's code in its tile, and the tile.
struct Best {
  float score[2] = {-INFINITY, -INFINITY};
  int tile[2] = {0, 0};
};

// Starts kStepColumns columns of a tile, from `first` on: sums = bias + a b.
template <int kDim>
__device__ __forceinline__ void begin_step(const unsigned (&a)[kDim / 16][4], unsigned tile, const float* bias, int first,
                                           float (&sums)[kStepColumns<kDim> / 2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kStepColumns<kDim> / 8; ++j) {
    const float2 pair = *reinterpret_cast<const float2*>(bias + first + 8 * j + 2 * t);
    sums[4 * j] = sums[4 * j + 2] = pair.x;
    sums[4 * j + 1] = sums[4 * j + 3] = pair.y;
  }
  pin(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    multiply_async(a[step], descriptor(tile + step / 4 * (kTileClusters * 128) + first * 128 + step % 4 * 32), sums);
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// All but the kPending newest steps are done.
template <int kPending>
__device__ __forceinline__ void wait_steps() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kDim>
__device__ __forceinline__ void end_step(float (&sums)[kStepColumns<kDim> / 2], int first, int tile, unsigned score_bits,
                                         Best& best) {
  pin(sums);
  float most[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
#pragma unroll
  for (int j = 0; j < kStepColumns<kDim> / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const unsigned code = first / 4 + 2 * j + e % 2;
      const float score = __uint_as_float((__float_as_uint(sums[4 * j + e]) & score_bits) | code);
      most[e / 2][e % 2] = fmaxf(most[e / 2][e % 2], score);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float score = fmaxf(most[half][0], most[half][1]);
    if (score > best.score[half]) {
      best.score[half] = score;
      best.tile[half] = tile;
    }
  }
}

// Tokens of a thread block's turn. Its problem's done_at is read a turn ahead, for its latency.
struct Item {
  __device__ Item(const Batch& batch, int number, int tokens, int done_at, int iteration) {
    const int blocks = batch.rows / tokens;
    problem = number / blocks;
    const Job& job = batch.jobs[problem / batch.heads];
    first = number % blocks * tokens;
    n = job.n;
    rows = static_cast<std::int64_t>(problem) * batch.rows;
    columns = static_cast<std::int64_t>(problem) * batch.columns;
    if (first < n && done_at >= iteration) tiles = (clusters_of(batch, job, iteration) + kTileClusters - 1) / kTileClusters;
  }
  int problem;
  int first;
  int n;
  int tiles = 0;  // none: nothing to do
  std::int64_t rows;
  std::int64_t columns;
};
__device__ __forceinline__ int done_at(const Batch& batch, int number, int tokens, int items) {
  return number < items ? __ldg(&batch.work.state[number / (batch.rows / tokens)].done_at) : 0;
}

// A thread's share of 16 tokens, operand a of a warp; y: of its first row.
template <int kDim>
__device__ __forceinline__ void load_tokens(const __half* y, unsigned (&a)[kDim / 16][4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const __half* from = y + 8 * half * kDim;
#pragma unroll
    for (int block = 0; block < kDim / 32; ++block) {
      const uint4 x = *reinterpret_cast<const uint4*>(from + 32 * block + 8 * t);
      a[2 * block][half] = x.x;
      a[2 * block][half + 2] = x.y;
      a[2 * block + 1][half] = x.z;
      a[2 * block + 1][half + 2] = x.w;
    }
    if constexpr (kDim % 32 != 0) {
      const uint2 x = *reinterpret_cast<const uint2*>(from + kDim - 16 + 4 * t);
      a[kDim / 16 - 1][half] = x.x;
      a[kDim / 16 - 1][half + 2] = x.y;
    }
  }
}

// before: the tokens' last clusters, of each fourth thread.
__device__ __forceinline__ void store_nearest(const Work& work, const Item& item, int row, const int (&before)[2],
                                              const Best& best) {
  const int t = threadIdx.x % 4;
  int moved = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int code = static_cast<int>(__float_as_uint(best.score[half]) & kCodeBits);
    float score = best.score[half];
    int nearest = best.tile[half] * kTileClusters + code / 2 * 8 + 2 * t + code % 2;
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
      const float other = __shfl_xor_sync(~0u, score, step);
      const int where = __shfl_xor_sync(~0u, nearest, step);
      if (other > score || (other == score && where < nearest)) {
        score = other;
        nearest = where;
      }
    }
    const int token = row + 8 * half;
    if (t == 0 && token < item.n) {
      moved += before[half] != nearest;
      work.nearest[item.rows + token] = nearest;
      work.score[item.rows + token] = score;
      atomicAdd(&work.sizes[item.columns + nearest], 1);
    }
  }
  moved = __reduce_add_sync(~0u, moved);
  if (threadIdx.x % 32 == 0 && moved > 0) atomicAdd(&work.state[item.problem].moved, moved);
}

#endif

// score_bits: ~kCodeBits, as an argument: were it a constant, the compiler would spend two instructions a score, for lack of one
// with two constants.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    assign_sm90_kernel(const __grid_constant__ Batch batch, int iteration, unsigned score_bits) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using S = Stage<kDim>;
  extern __shared__ __align__(1024) std::byte dynamic[];
  __shared__ __align__(8) std::uint64_t barriers[2][S::kCount + 1];  // full, empty; the last of the tokens
  std::byte* tokens = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;
  std::byte* stages = tokens + S::kTokens;
  const auto full = [&](int s) { return shared_address(&barriers[0][s]); };
  const auto empty = [&](int s) { return shared_address(&barriers[1][s]); };
  if (threadIdx.x == 0) {
    for (int s = 0; s <= S::kCount; ++s) {
      init_barrier(full(s), 1);
      init_barrier(empty(s), kGroups * 4);  // warps
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const Work& work = batch.work;
  const int items = batch.rows / Steps<kDim>::kTokens * batch.heads * batch.job_count;
  const int lane = threadIdx.x % 32;
  int stage = 0;
  unsigned phase = 0;
  unsigned turn = 0;  // parity of this block's items
  // Consecutive items are of one problem, so that blocks that run together read the same tiles.
  if (threadIdx.x >= kGroups * 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kGroups * 128) {
      int done = done_at(batch, blockIdx.x, Steps<kDim>::kTokens, items);
      for (int number = blockIdx.x; number < items; number += gridDim.x) {
        const Item item(batch, number, Steps<kDim>::kTokens, done, iteration);
        done = done_at(batch, number + gridDim.x, Steps<kDim>::kTokens, items);
        if (item.tiles == 0) continue;
        wait(empty(S::kCount), turn ^ 1);
        turn ^= 1;
        expect_bytes(full(S::kCount), S::kTokens);
        copy_bulk(shared_address(tokens), work.y + (item.rows + item.first) * kDim, S::kTokens, full(S::kCount));
        const std::byte* source = work.tiles + item.columns / kTileClusters * S::kTile;
        for (int tile = 0; tile < item.tiles; ++tile) {
          wait(empty(stage), phase ^ 1);
          const unsigned to = shared_address(stages + stage * S::kBytes);
          expect_bytes(full(stage), S::kTile + kTileClusters * 4);
          copy_bulk(to, source + static_cast<std::int64_t>(tile) * S::kTile, S::kTile, full(stage));
          copy_bulk(to + S::kTile, work.bias + item.columns + tile * kTileClusters, kTileClusters * 4, full(stage));
          if (++stage == S::kCount) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    int done = done_at(batch, blockIdx.x, Steps<kDim>::kTokens, items);
    for (int number = blockIdx.x; number < items; number += gridDim.x) {
      const Item item(batch, number, Steps<kDim>::kTokens, done, iteration);
      done = done_at(batch, number + gridDim.x, Steps<kDim>::kTokens, items);
      if (item.tiles == 0) continue;
      constexpr int kRows = Steps<kDim>::kRows;
      // Row tile r of warpgroup w begins at 64 (w kRows + r).
      const int row = threadIdx.x / 128 * (64 * kRows) + threadIdx.x % 128 / 32 * 16 + lane / 4;
      int before[kRows][2];
#pragma unroll
      for (int i = 0; i < 2 * kRows; ++i)
        before[i / 2][i % 2] = work.nearest[item.rows + item.first + row + 64 * (i / 2) + i % 2 * 8];
      unsigned a[kRows][kDim / 16][4];
      wait(full(S::kCount), turn);
      turn ^= 1;
#pragma unroll
      for (int r = 0; r < kRows; ++r) load_tokens<kDim>(reinterpret_cast<const __half*>(tokens) + (row + 64 * r) * kDim, a[r]);
      __syncwarp();
      if (lane == 0) arrive(empty(S::kCount));
      constexpr int kSecond = kRows == 2 ? 0 : kStepColumns<kDim>;  // first column of the second step
      Best best[kRows];
      float sums[2][kStepColumns<kDim> / 2];
      const auto begin = [&](int step) {
        const std::byte* at = stages + stage * S::kBytes;
        begin_step<kDim>(a[step % kRows], shared_address(at), reinterpret_cast<const float*>(at + S::kTile), step * kSecond,
                         sums[step]);
      };
      wait(full(stage), phase);
      begin(0);
      for (int tile = 0; tile < item.tiles - 1; ++tile) {
        begin(1);
        wait_steps<1>();
        end_step<kDim>(sums[0], 0, tile, score_bits, best[0]);
        const int used = stage;
        if (++stage == S::kCount) stage = 0, phase ^= 1;
        wait(full(stage), phase);
        begin(0);
        wait_steps<1>();
        if (lane == 0) arrive(empty(used));
        end_step<kDim>(sums[1], kSecond, tile, score_bits, best[kRows - 1]);
      }
      begin(1);
      wait_steps<1>();
      end_step<kDim>(sums[0], 0, item.tiles - 1, score_bits, best[0]);
      wait_steps<0>();
      if (lane == 0) arrive(empty(stage));
      end_step<kDim>(sums[1], kSecond, item.tiles - 1, score_bits, best[kRows - 1]);
      if (++stage == S::kCount) stage = 0, phase ^= 1;
#pragma unroll
      for (int r = 0; r < kRows; ++r) store_nearest(work, item, item.first + row + 64 * r, before[r], best[r]);
    }
  }
#endif
}

template <int kDim>
bool assign_of(const Batch& batch, int iteration, cudaStream_t stream) {
  constexpr int kBytes = Stage<kDim>::kTokens + Stage<kDim>::kCount * Stage<kDim>::kBytes + 1024;
  const auto kernel = assign_sm90_kernel<kDim>;
  // The kernel has a body, and with it shared memory of fixed size, only where it was built for this very architecture.
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "assign_tokens");
  if (attributes.sharedSizeBytes == 0) return false;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "assign_tokens");
  int device = 0;
  int processors = 0;
  check(cudaGetDevice(&device), "assign_tokens");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "assign_tokens");
  const int items = batch.rows / Steps<kDim>::kTokens * batch.heads * batch.job_count;
  launch("assign_tokens", kernel, {static_cast<unsigned>(items < processors ? items : processors), kThreads, kBytes}, stream,
         batch, iteration, ~kCodeBits);
  return true;
}

}  // namespace

bool assign_tokens_sm90(const Batch& batch, int iteration, cudaStream_t stream) {
  bool launched = false;
  with_dim(batch.dim, [&]<int kDim>() { launched = assign_of<kDim>(batch, iteration, stream); });
  return launched;
}

}  // namespace tactic::cuda
