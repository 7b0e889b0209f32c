// What the kernels of clustering share: the batch of problems a launch works on, its scratch, and how a caller's rows are read.
// A problem is one KV head of one job (a range of tokens of one sequence in one layer). Included by cluster/cuda*.cu only.
//
// The space of k-means. A key becomes y = 2^e L^T (k - origin) in f16: the origin is a mean of keys and e brings elements near 1,
// so that 11 bits of mantissa are spent on what differs between keys. Elements of y lie in an order of their own (the one in
// which a thread of the transform's matrix product holds them); nothing but tile_offset() needs to know it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace tactic::cuda {

constexpr int kMaxJobs = 10;        // their parameters fill the 4 KB that every driver passes to a kernel
constexpr int kTileClusters = 128;  // centroids of a tile: the width of a matrix instruction's output on sm_90
constexpr int kTokenTile = 256;     // tokens of a thread block of assign(); rows of y are padded to it
constexpr int kPanelElements = 64;  // elements of a row of a tile's panel: 128 bytes, all 32 banks
constexpr int kWarpTokens = 128;    // a cluster of up to so many is one warp's work, a larger one a thread block's
constexpr int kSampleTokens = 256;  // whose mean is the origin
constexpr int kPieceTokens = 256;   // that one thread block adds into a piece of the covariance, at least
constexpr int kMaxPieces = 32;
constexpr float kMaxHalf = 65504.0f;

struct Job {
  DeviceRows k;
  DeviceRows v;
  const std::int32_t* blocks = nullptr;  // of this sequence, or null
  std::int32_t block_size = 1;
  std::int32_t block_count = 0;
  std::int32_t sequence = 0;
  std::int32_t first = 0;
  std::int32_t n = 0;
  std::int32_t count = 0;  // C
  std::int32_t drawn = 0;  // of them at the start; the others are for outliers
  bool append = false;
  bool new_part = false;
  const float* factor = nullptr;
  std::uint32_t* status = nullptr;
  DeviceIndex index;
};

// What a problem learns about itself.
struct ProblemState {
  float scale;             // of k - origin
  float spread_scale;      // a squared distance of y times this is one of the metric
  std::int32_t moved;      // tokens in this iteration
  std::int32_t done_at;    // iteration after which nothing moves
  std::uint32_t bad_k;     // lowest token of the job whose K is not finite, or kNone
  std::uint32_t bad_v;     // the same of V
  std::int32_t bad_block;  // a block id outside the cache
  std::int32_t large;      // clusters of more than kWarpTokens tokens, listed in Work::large
};
constexpr std::uint32_t kNone = 0xffffffffu;

// Scratch; leading dimension: problems.
struct Work {
  ProblemState* state = nullptr;    // []
  std::uint32_t* fault = nullptr;   // [jobs] job_fault() as far as keys and index are concerned
  __half* y = nullptr;              // [rows, dim]
  float* norm = nullptr;            // [rows] |y|^2
  float* score = nullptr;           // [rows] y . c - |c|^2 / 2 of the nearest
  std::int32_t* nearest = nullptr;  // [rows]
  std::int32_t* order = nullptr;    // [rows] tokens of the job, cluster by cluster
  std::int32_t* sizes = nullptr;    // [columns]
  std::int32_t* cursor = nullptr;   // [columns]
  std::int32_t* begin = nullptr;    // [columns + 1]
  std::int32_t* large = nullptr;    // [columns]
  std::uint64_t* kept = nullptr;    // [columns] the token that a cluster keeps where others go to empty clusters
  std::byte* tiles = nullptr;       // [columns / 128] centroids as tile_offset() says
  float* bias = nullptr;            // [columns] -|c|^2 / 2, -infinity behind the last
  float* origin = nullptr;          // [dim]
  std::byte* factor = nullptr;      // [dim] rows of 2^e L^T as tile_offset() says, in tiles of dim rows
  __half* mean_k = nullptr;         // [columns, dim] (mean K - origin) * scale
  float* products = nullptr;        // [pieces, dim, dim]
};

struct Batch {
  Job jobs[kMaxJobs];
  int job_count = 0;
  int heads = 0;
  int dim = 0;
  int v_dim = 0;
  int rows = 0;     // the longest job's tokens, rounded up to kTokenTile
  int columns = 0;  // the largest job's clusters, rounded up to kTileClusters
  int pieces = 0;
  int iterations = 0;
  bool int8_centroids = true;
  std::uint64_t seed = 0;
  Work work;
};
static_assert(sizeof(Batch) <= 4000);

// Clusters that tokens may be assigned to in an iteration: those for outliers join before the last.
__device__ __forceinline__ int clusters_of(const Batch& batch, const Job& job, int iteration) {
  return iteration < batch.iterations ? job.drawn : job.count;
}

__host__ __device__ inline int panels_of(int dim) { return (dim + kPanelElements - 1) / kPanelElements; }
__host__ __device__ inline int tile_bytes(int rows, int dim) { return panels_of(dim) * rows * kPanelElements * 2; }

// Where element pair (i, i + 1) of a row's y lies in a tile of `rows` rows: panels of 64 elements, rows of 128 bytes whose
// 16-byte chunks are exchanged by the row's number (ldmatrix and wgmma then meet no bank twice). Inside 32 elements the order is
// that of a matrix product's k: thread t of four, which loads elements 8t .. 8t + 7 at once, holds k = 2t, 2t + 1, 2t + 8, 2t + 9
// of two steps of 16. A last block of 16 elements is one step.
__device__ __forceinline__ int tile_offset(int row, int rows, int i, int dim) {
  const int block = i & ~31;
  const int k = block + 32 <= dim ? block + ((i >> 2) & 1) * 16 + ((i >> 1) & 1) * 8 + ((i >> 3) & 3) * 2
                                  : block + ((i >> 1) & 1) * 8 + ((i >> 2) & 3) * 2;
  const int panel = k / kPanelElements;
  const int chunk = (k % kPanelElements) / 8;
  return (panel * rows + row) * (kPanelElements * 2) + ((chunk ^ (row & 7)) << 4) + (k & 7) * 2;
}

// Address of a row; null: the block table is at fault.
__device__ __forceinline__ const std::byte* row_of(const Job& job, const DeviceRows& rows, int token, int head) {
  const std::byte* base = rows.data + head * rows.head_stride;
  if (job.blocks == nullptr) return base + job.sequence * rows.sequence_stride + token * rows.token_stride;
  const int block = job.blocks[token / job.block_size];
  if (job.block_count > 0 && (block < 0 || block >= job.block_count)) return nullptr;
  return base + block * rows.block_stride + (token % job.block_size) * rows.token_stride;
}

// Elements i .. i + 7 of a row as stored.
struct Raw8 {
  uint4 low = make_uint4(0, 0, 0, 0);
  uint4 high = make_uint4(0, 0, 0, 0);  // of f32
};
__device__ __forceinline__ Raw8 load_raw(const std::byte* row, DeviceType type, int i) {
  Raw8 raw;
  if (type == DeviceType::fp8_e4m3) {
    const uint2 bits = *reinterpret_cast<const uint2*>(row + i);
    raw.low.x = bits.x;
    raw.low.y = bits.y;
  } else if (type == DeviceType::f32) {
    raw.low = *reinterpret_cast<const uint4*>(row + 4 * i);
    raw.high = *reinterpret_cast<const uint4*>(row + 4 * i + 16);
  } else {
    raw.low = *reinterpret_cast<const uint4*>(row + 2 * i);
  }
  return raw;
}
__device__ __forceinline__ float2 unpack_half(unsigned bits) { return __half22float2(*reinterpret_cast<const __half2*>(&bits)); }
// Their values, but for the scale.
__device__ __forceinline__ void decode(const Raw8& raw, DeviceType type, float (&x)[8]) {
  const unsigned low[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
  const unsigned high[4] = {raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (type == DeviceType::bf16) {
      x[2 * j] = __uint_as_float(low[j] << 16);
      x[2 * j + 1] = __uint_as_float(low[j] & 0xffff0000u);
    } else if (type == DeviceType::f32) {
      x[j] = __uint_as_float(low[j]);
      x[j + 4] = __uint_as_float(high[j]);
    } else {
      float2 pair;
      if (type == DeviceType::f16) {
        pair = unpack_half(low[j]);
      } else {
        const auto stored = static_cast<__nv_fp8x2_storage_t>(low[j / 2] >> (j % 2 * 16));
        pair = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(stored, __NV_E4M3)));
      }
      x[2 * j] = pair.x;
      x[2 * j + 1] = pair.y;
    }
  }
}
__device__ __forceinline__ void load8(const std::byte* row, DeviceType type, int i, float (&x)[8]) {
  decode(load_raw(row, type, i), type, x);
}

__device__ __forceinline__ unsigned pack_half(float a, float b) {
  const __half2 pair = __floats2half2_rn(fminf(fmaxf(a, -kMaxHalf), kMaxHalf), fminf(fmaxf(b, -kMaxHalf), kMaxHalf));
  return *reinterpret_cast<const unsigned*>(&pair);
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Four 8 x 8 matrices of 16-bit elements; thread l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned address, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}
__device__ __forceinline__ void load_matrices_transposed(unsigned address, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}
// sums [16, 8] += a [16, 16] b [16, 8], f16 into f32.
__device__ __forceinline__ void multiply(const unsigned (&a)[4], unsigned b0, unsigned b1, float (&sums)[4]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Address of this thread's row for load_matrices(): rows n .. n + 15 and k .. k + 15 of a tile, as the operand b of two products.
__device__ __forceinline__ unsigned tile_address(unsigned tile, int rows, int n, int k, int lane) {
  const int row = n + ((lane >> 4) << 3) + (lane & 7);
  const int chunk = k / 8 + ((lane >> 3) & 1);
  return tile + ((chunk / 8) * rows + row) * (kPanelElements * 2) + (((chunk % 8) ^ (row & 7)) << 4);
}

// ---- what a job finds in its slot of the index ---------------------------------------------------------------------------

__device__ __forceinline__ std::int64_t slot_of(const Job& job, int heads, int head) {
  return static_cast<std::int64_t>(job.sequence) * heads + head;
}
// First column and first place in `tokens` of the job's clusters.
__device__ __forceinline__ int first_column(const Job& job, std::int64_t slot) {
  return job.append ? job.index.clusters[slot] : 0;
}
__device__ __forceinline__ int first_place(const Job& job, std::int64_t slot) {
  return job.append ? job.index.begin[slot * (job.index.capacity + 64) + job.index.clusters[slot]] : 0;
}
// The part that the job's clusters belong to, and whether it holds older ones.
struct PartChoice {
  int part;
  bool merged;
};
__device__ __forceinline__ PartChoice part_of(const Job& job) {
  const int parts = job.append ? job.index.parts[job.sequence] : 0;
  if (parts == 0) return {0, false};
  return job.new_part && parts < job.index.part_capacity ? PartChoice{parts, false} : PartChoice{parts - 1, true};
}
// device_status bits of what keeps a job from being committed; 0: nothing.
__device__ inline std::uint32_t job_fault(const Batch& batch, int number) {
  const Job& job = batch.jobs[number];
  std::uint32_t fault = 0;
  const std::int32_t* range = job.index.range + 2 * job.sequence;
  if (job.append && range[1] > range[0] && range[1] != job.first) fault |= device_status::bad_index;
  for (int head = 0; head < batch.heads; ++head) {
    const ProblemState& state = batch.work.state[number * batch.heads + head];
    const std::int64_t slot = slot_of(job, batch.heads, head);
    if (state.bad_k != kNone || state.bad_v != kNone) fault |= device_status::non_finite;
    if (state.bad_block != 0) fault |= device_status::bad_block;
    const int column = first_column(job, slot);
    if (column < 0 || column > job.index.capacity - job.count) {
      fault |= device_status::bad_index;
    } else if (const int place = first_place(job, slot); place < 0 || place > job.index.token_capacity - job.n) {
      fault |= device_status::bad_index;
    }
  }
  return fault;
}

// f.template operator()<dim>(), for code that knows head_dim when it is compiled.
template <typename F>
void with_dim(int dim, F&& f) {
  switch (dim) {
    case 64:
      return f.template operator()<64>();
    case 80:
      return f.template operator()<80>();
    case 96:
      return f.template operator()<96>();
    case 128:
      return f.template operator()<128>();
    default:
      return f.template operator()<256>();
  }
}

// ---- the stages; each launches its kernels for the whole batch ---------------------------------------------------------

void start_problems(const Batch& batch, cudaStream_t stream);  // draw, origin, factor
void load_keys(const Batch& batch, cudaStream_t stream);       // y, norm; K's NaN
void seed_centroids(const Batch& batch, cudaStream_t stream);  // the drawn keys
void assign_tokens(const Batch& batch, int iteration, cudaStream_t stream);
bool assign_tokens_sm90(const Batch& batch, int iteration, cudaStream_t stream);  // false: not this device or head_dim
void settle_clusters(const Batch& batch, int iteration, cudaStream_t stream);     // sizes, repair, begin, order
void update_centroids(const Batch& batch, int iteration, cudaStream_t stream);
void finish_clusters(const Batch& batch, cudaStream_t stream);  // columns of the index, covariance
void pool_covariance(const Batch& batch, cudaStream_t stream);  // products
void commit(const Batch& batch, cudaStream_t stream);           // counts of the index

}  // namespace tactic::cuda
