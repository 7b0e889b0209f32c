// The floor of a step: a kernel that goes the way of Tactic's step as one kernel (docs/gpu.md) and computes nothing. Index, q,
// an exchange of sums, one of counts, a gather of the rows that the step reads, an exchange and a store of results.
#include <algorithm>
#include <string>

#include "attend/cuda_ptx.cuh"
#include "core/cuda.h"
#include "limits.h"

namespace tactic::bench::gpu {
namespace {

using cuda::commit_copies;
using cuda::copy_async;
using cuda::expect_bytes;
using cuda::send_to_block;
using cuda::wait_copies;
using cuda::wait_for_bytes;

constexpr int kWarps = 8, kTile = 16, kStages = 2, kMostBlocks = 16;

struct FloorTask {
  const char *k, *v;
  const std::int32_t* rows;   // numbers: of each (sequence, KV head) the listed ones, then the always-attended ones
  const std::int32_t* first;  // [slots + 1] in `rows`
  const std::int32_t* listed;
  const char* index;  // [slots, index_bytes]
  const float4* q;    // [slots, quads]
  float4* out;        // [slots, quads]
  int index_bytes, quads;
};

struct FloorShared {
  std::uint64_t sums_here, counts_here, parts_here;
  float4 sums[kMostBlocks * kWarps];
  float4 counts[kMostBlocks];
  float4 parts[256 + kMostBlocks];  // [blocks, share of the quads]
  float4 results[kWarps * 257];
  std::uint32_t rows[kWarps][2 * kStages * kTile];
};

// A warp's tiles first, first + step, ... below `end` of the rows at `rows`: copied to its stages, two on their way, row numbers
// two tiles ahead of the copies, a lane a row of two tiles.
template <int kRowBytes>
class TileCopier {
  static constexpr int kLanes = kRowBytes / 16, kAtOnce = 32 / kLanes, kTileBytes = 2 * kTile * kRowBytes;

 public:
  __device__ TileCopier(const FloorTask& task, const std::int32_t* rows, int count, unsigned char* stages, std::uint32_t* kept)
      : task_(task), rows_(rows), count_(count), lane_(static_cast<int>(threadIdx.x) % 32), stages_(stages), kept_(kept) {}

  __device__ __forceinline__ void start(int first, int step) {
    step_ = step, asked_ = sent_ = first, end_ = (count_ + kTile - 1) / kTile;
    ask();
    send();
  }
  // Leaves something of every tile in `mixed`.
  __device__ __forceinline__ void finish(float& mixed) {
    send();
#pragma unroll 1
    for (; used_ < sent_count_; ++used_) {
      wait_copies<kStages - 1>();
      __syncwarp();
      mixed += *reinterpret_cast<const float*>(stages_ + used_ % kStages * kTileBytes + lane_ * 64);
      __syncwarp();
      send();
    }
  }

 private:
  __device__ __forceinline__ void ask() {
    const int place = (asked_ + lane_ / kTile * step_) * kTile + lane_ % kTile;
    found_ = asked_ < end_ ? __ldg(rows_ + min(place, count_ - 1)) : 0;
    asked_ += 2 * step_;
  }
  __device__ __forceinline__ void send() {
    if (sent_ >= end_) return commit_copies();
    const int pair = sent_count_ / 2 % 2;
    if (sent_count_ % 2 == 0) {
      __syncwarp();
      const int row = lane_ % kTile;  // rows that a lane copies lie side by side
      kept_[pair * 2 * kTile + lane_ / kTile * kTile + row % kAtOnce * (kTile / kAtOnce) + row / kAtOnce] =
          static_cast<std::uint32_t>(found_);
      __syncwarp();
      ask();
    }
    const std::uint32_t* rows = kept_ + pair * 2 * kTile + sent_count_ % 2 * kTile + lane_ / kLanes * (kTile / kAtOnce);
    unsigned char* to = stages_ + sent_count_ % kStages * kTileBytes + lane_ * 16;
#pragma unroll
    for (int i = 0; i < kTile / kAtOnce; ++i) {
      const std::size_t at = static_cast<std::size_t>(rows[i]) * kRowBytes + lane_ % kLanes * 16;
      copy_async(to + i * 512, task_.k + at);
      copy_async(to + kTile * kRowBytes + i * 512, task_.v + at);
    }
    commit_copies();
    sent_ += step_;
    ++sent_count_;
  }

  const FloorTask& task_;
  const std::int32_t* rows_;
  int count_, lane_, step_ = 1, asked_ = 0, sent_ = 0, end_ = 0, found_ = 0, sent_count_ = 0, used_ = 0;
  unsigned char* stages_;
  std::uint32_t* kept_;
};

// blockIdx is (block of the slot's, slot); the blocks of a slot form a thread-block cluster.
template <int kRowBytes>
__global__ void __launch_bounds__(32 * kWarps, 1) floor_step(const __grid_constant__ FloorTask task) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kTileBytes = 2 * kTile * kRowBytes, kStageBytes = kStages * kTileBytes;
  extern __shared__ __align__(16) unsigned char memory[];
  FloorShared& shared = *reinterpret_cast<FloorShared*>(memory);
  unsigned char* stages = memory + sizeof(FloorShared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int rank = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x), slot = static_cast<int>(blockIdx.y);
  if (thread == 0) {
    for (std::uint64_t* barrier : {&shared.sums_here, &shared.counts_here, &shared.parts_here}) cuda::init_barrier(barrier);
  }
  cuda::cluster_arrive_relaxed();
  const int piece = task.index_bytes / 16 / blocks * 16;
  const char* index = task.index + static_cast<std::size_t>(slot) * task.index_bytes + rank * piece;
  for (int i = thread * 16; i < piece; i += 32 * kWarps * 16)  // to the warps' second stages, in turn
    copy_async(stages + (i / kTileBytes % kWarps) * kStageBytes + kTileBytes + i % kTileBytes, index + i);
  commit_copies();
  const int first = __ldg(task.first + slot), listed = __ldg(task.listed + slot),
            always = __ldg(task.first + slot + 1) - first - listed;
  cuda::cluster_wait();

  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  float mixed = 0;
  if (thread < task.quads) mixed = task.q[slot * task.quads + thread].x;
  const int share = (task.quads + blocks - 1) / blocks, own = min(max(task.quads - rank * share, 0), share);
  if (thread == 0) {
    expect_bytes(&shared.sums_here, static_cast<std::uint32_t>(blocks * kWarps * 16));
    expect_bytes(&shared.counts_here, static_cast<std::uint32_t>(blocks * 16));
    expect_bytes(&shared.parts_here, static_cast<std::uint32_t>(blocks * own * 16));
  }
  unsigned char* stage = stages + warp * kStageBytes;
  TileCopier<kRowBytes> fixed(task, task.rows + first + listed, always, stage, shared.rows[warp]);
  fixed.start(rank + blocks * (kWarps - 1 - warp), blocks * kWarps);
  wait_copies<1>();  // the index
  __syncthreads();
  mixed += *reinterpret_cast<const float*>(stage + kTileBytes + lane * 16);
  __syncthreads();
  fixed.finish(mixed);
  if (lane < blocks) send_to_block(&shared.sums[rank * kWarps + warp].x, &shared.sums_here, lane, make_float4(mixed, 1, 1, 1));
  wait_for_bytes(&shared.sums_here);
  mixed += shared.sums[lane % (blocks * kWarps)].x;
  __syncthreads();
  if (thread < blocks) send_to_block(&shared.counts[rank].x, &shared.counts_here, thread, make_float4(mixed, 1, 1, 1));
  wait_for_bytes(&shared.counts_here);
  mixed += shared.counts[lane % blocks].x;
  TileCopier<kRowBytes> lists(task, task.rows + first, listed, stage, shared.rows[warp]);
  lists.start(rank + blocks * warp, blocks * kWarps);
  lists.finish(mixed);
  for (int i = lane; i < task.quads; i += 32) shared.results[warp * 257 + i] = make_float4(mixed, 1, 1, 1);
  __syncthreads();
  if (thread < task.quads) {
    float4 x = make_float4(0, 0, 0, 0);
    for (int w = 0; w < kWarps; ++w) {
      const float4 y = shared.results[w * 257 + thread];
      x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
    }
    send_to_block(&shared.parts[rank * share + thread % share].x, &shared.parts_here, thread / share, x);
  }
  wait_for_bytes(&shared.parts_here);
  if (thread >= own) return;
  float4 x = make_float4(0, 0, 0, 0);
  for (int block = 0; block < blocks; ++block) {
    const float4 y = shared.parts[block * share + thread];
    x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
  }
  task.out[slot * task.quads + rank * share + thread] = x;
#endif
}

template <typename T>
DeviceArray<T> on_device(const std::vector<T>& host) {
  DeviceArray<T> array(host.size());
  array.copy_from(host);
  return array;
}

}  // namespace

Row step_floor(Timer& timer, const Case& c, const StepRows& rows, const std::vector<const void*>& index,
               std::size_t index_bytes) {
  if (!cuda::has_sm90_code()) return {};
  const auto kernel = c.head_dim == 128 ? floor_step<256> : floor_step<128>;
  const int slots = c.batch * c.kv_heads, quads = c.group() * c.head_dim / 4;
  cuda::Launch shape;
  shape.block = 32 * kWarps;
  shape.shared_bytes = sizeof(FloorShared) + static_cast<std::size_t>(kWarps * kStages * 2 * kTile * c.row_bytes());
  shape.dependent = true;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)), "floor");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "floor");
  std::vector<DeviceArray<std::int32_t>> numbers, first, listed;
  for (const auto& layer : rows.numbers) numbers.push_back(on_device(layer));
  for (const auto& layer : rows.first) first.push_back(on_device(layer));
  for (const auto& layer : rows.listed) listed.push_back(on_device(layer));
  const DeviceArray<float4> q(static_cast<std::size_t>(slots * quads)), out(static_cast<std::size_t>(slots * quads));
  check(cudaMemset(q.data(), 0, q.size() * sizeof(float4)), "floor");
  Row best;
  for (int blocks = kMostBlocks; blocks > 1; --blocks) {  // one alone is no thread-block cluster: it may not send
    shape.cluster = blocks;
    shape.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slots));
    if (cuda::clusters_at_once(kernel, shape) < slots) continue;
    Row row = c.row("step floor", std::to_string(blocks) + " blocks a head");
    row.times = timer(c.layers, [&](int layer, cudaStream_t stream) {
      const auto at = static_cast<std::size_t>(layer);
      const FloorTask task{reinterpret_cast<const char*>(c.k[at]),
                           reinterpret_cast<const char*>(c.v[at]),
                           numbers[at].data(),
                           first[at].data(),
                           listed[at].data(),
                           static_cast<const char*>(index[at]),
                           q.data(),
                           out.data(),
                           static_cast<int>(index_bytes),
                           quads};
      cuda::launch("floor", kernel, shape, stream, task);
    });
    if (best.layers != 0 && row.times.median > best.times.median) break;  // fewer blocks take longer and longer
    best = row;
  }
  return best;
}

}  // namespace tactic::bench::gpu
