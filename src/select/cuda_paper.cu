// Algorithm 1 of the paper on the device, behind the selection kernel's scores: a block sorts the clusters of a query head, many
// blocks weigh its samples, and the blocks of a KV head find the budgets of its heads and list the union.
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "core/error.h"
#include "select/cuda_device.h"
#include "select/cuda_exported.h"
#include "select/cuda_fixed.h"
#include "select/cuda_lists.h"
#include "select/cuda_paper.h"

namespace tactic::cuda {
namespace {

// ---- order -----------------------------------------------------------------------------------------------------------

constexpr int kOrderThreads = 1024;
constexpr int kOrderEach = 4;
constexpr int kRun = kOrderThreads * kOrderEach;  // columns that are sorted at once

using RunSort = cub::BlockRadixSort<float, kOrderThreads, kOrderEach, std::uint16_t>;
using RunScan = cub::BlockScan<int, kOrderThreads>;
using BlockSum = cub::BlockReduce<double, kOrderThreads>;

std::size_t order_bytes(int capacity) { return static_cast<std::size_t>(capacity) * (sizeof(float) + sizeof(std::uint16_t)); }

// Entries of a descending run that come before `key`: greater ones, and equal ones of an earlier run.
__device__ int entries_before(const float* run, int size, float key, bool earlier) {
  int low = 0;
  while (size > 0) {
    const int half = size / 2;
    if (run[low + half] > key || (earlier && run[low + half] == key)) {
      low += half + 1;
      size -= half + 1;
    } else {
      size = half;
    }
  }
  return low;
}

// One query head a block: its columns by falling logit, the tokens before each, the share of what is always attended.
__global__ void __launch_bounds__(kOrderThreads) order_kernel(const __grid_constant__ PaperTask task) {
  __shared__ union {
    RunSort::TempStorage sort;
    RunScan::TempStorage scan;
    BlockSum::TempStorage sum;
  } temp;
  extern __shared__ float keys[];  // [capacity] runs of sorted logits, then their columns
  const int thread = static_cast<int>(threadIdx.x);
  wait_for_predecessor();
  let_successor_start();
  const PaperHead head(task, static_cast<int>(blockIdx.x));
  const int count = head.count;
  auto* columns = reinterpret_cast<std::uint16_t*>(keys + task.select.index.capacity);
  const std::int64_t row = static_cast<std::int64_t>(head.number) * task.select.index.capacity;
  double share = 0;
  for (int first = 0; first < count; first += kRun) {
    float key[kOrderEach];
    std::uint16_t column[kOrderEach];
#pragma unroll
    for (int i = 0; i < kOrderEach; ++i) {
      const int c = first + i * kOrderThreads + thread;
      // behind the last column what sorts behind everything, a NaN included
      key[i] = c < count ? fmaxf(task.select.exported.logit[row + c], -3e38f) : -INFINITY;
      column[i] = static_cast<std::uint16_t>(c);
      if (c < count) share += static_cast<double>(exp2_fast(task.select.exported.share[row + c]));
    }
    RunSort(temp.sort).SortDescending(key, column);
#pragma unroll
    for (int i = 0; i < kOrderEach; ++i) {
      const int place = first + thread * kOrderEach + i;
      if (place < count) keys[place] = key[i], columns[place] = column[i];
    }
    __syncthreads();
  }
  for (int place = thread; place < count; place += kOrderThreads) {
    const int run = place / kRun;
    int rank = place - run * kRun;
    for (int other = 0; other * kRun < count; ++other) {
      if (other != run) rank += entries_before(keys + other * kRun, min(kRun, count - other * kRun), keys[place], other < run);
    }
    head.order[rank] = columns[place];
  }
  __syncthreads();
  int before = 0;
  for (int first = 0; first < count; first += kRun) {
    int column[kOrderEach], start[kOrderEach], all = 0;
#pragma unroll
    for (int i = 0; i < kOrderEach; ++i) {
      const int place = first + thread * kOrderEach + i;
      column[i] = place < count ? head.order[place] : 0;
      start[i] = place < count ? head.begin[column[i] + 1] - head.begin[column[i]] : 0;
    }
    RunScan(temp.scan).ExclusiveSum(start, start, all);
#pragma unroll
    for (int i = 0; i < kOrderEach; ++i) {
      const int place = first + thread * kOrderEach + i;
      if (place >= count) break;
      head.start[place] = before + start[i];
      head.start_of[column[i]] = before + start[i];
    }
    before += all;
    __syncthreads();
  }
  const double of_columns = BlockSum(temp.sum).Sum(share);
  if (thread == 0) {
    head.start[count] = before;
    task.fixed[head.number] = of_columns < 1 ? static_cast<float>(1 - of_columns) : 0.0f;
  }
}

// ---- samples ---------------------------------------------------------------------------------------------------------

constexpr int kSampleThreads = 256;
constexpr int kSampleBlocks = 16;  // of a head: its sampled rows are read side by side
constexpr int kSampleGroup = 16;   // samples of a warp at a time, whose tokens its lanes find
constexpr int kRowLanes = 16;      // that weigh a row: 8 elements each, twice above 128

class Sampler {
 public:
  __device__ explicit Sampler(const PaperTask& task)
      : task_(task), head_(task, static_cast<int>(blockIdx.x)), lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run() {
    const int n = head_.start[head_.count];
    if (n == 0) return;
    const FitPlaces places = fit_places(n, task_.shares);
    const auto exact = static_cast<int>(places.head), first = static_cast<int>(places.first_end - places.first_begin),
               second = static_cast<int>(places.second_end - places.second_begin);
    const int count = exact + (exact < n ? first + second : 0);
    const int warp = (static_cast<int>(blockIdx.y) * kSampleThreads + static_cast<int>(threadIdx.x)) / 32;
    if (warp * kSampleGroup >= count) return;
    load_query();
    for (int base = warp * kSampleGroup; base < count; base += kSampleBlocks * kSampleThreads / 32 * kSampleGroup) {
      const int i = base + lane_ % kSampleGroup;
      const int place = i < exact           ? i
                        : i < exact + first ? static_cast<int>(places.first_begin) + i - exact
                                            : static_cast<int>(places.second_begin) + i - exact - first;
      const std::byte* row = i < count ? row_of_place(place) : nullptr;
#pragma unroll 4
      for (int j = 0; j < kSampleGroup; j += 32 / kRowLanes) {
        const int of = j + lane_ / kRowLanes;
        const auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(row), of);
        const float w = weight(reinterpret_cast<const std::byte*>(address));
        if (lane_ % kRowLanes == 0 && base + of < count) head_.sample[base + of] = w;
      }
    }
  }

 private:
  // This lane's elements of q, f32.
  __device__ void load_query() {
    const DeviceQuery& query = task_.select.query;
    const auto* q = static_cast<const std::byte*>(query.q) + head_.sequence * query.sequence_stride;
    const std::int64_t at = (static_cast<std::int64_t>(head_.kv_head) * task_.select.group + head_.member) * query.shape.head_dim;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int element = part * kRowLanes * 8 + lane_ % kRowLanes * 8;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        q_[part][i] = element < query.shape.head_dim ? load_element(q, query.type, at + element + i) : 0.0f;
    }
  }

  // Null: outside the sequence or the cache.
  __device__ const std::byte* row_of_place(int place) const {
    int low = 0;  // start[low] <= place
    for (int left = head_.count; left > 1;) {
      const int half = left / 2;
      low += head_.start[low + half] <= place ? half : 0;
      left -= half;
    }
    const DeviceIndex& index = task_.select.index;
    const int token = index.tokens[static_cast<std::int64_t>(head_.slot) * index.token_capacity + head_.begin[head_.order[low]] +
                                   place - head_.start[low]];
    const bool inside = token >= 0 && token < task_.select.kv.lengths[head_.sequence];
    return inside ? row_of(task_.select, head_.sequence, head_.kv_head, token) : nullptr;
  }

  // exp(q . k - reference) in all lanes of the row.
  __device__ float weight(const std::byte* row) const {
    const DeviceRows& k = task_.select.kv.k;
    const DeviceQuery& query = task_.select.query;
    float dot = 0;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int element = part * kRowLanes * 8 + lane_ % kRowLanes * 8;
      if (row == nullptr || element >= k.dim) continue;
      const uint4 bits =
          k.type == DeviceType::bf16 ? *reinterpret_cast<const uint4*>(row + element * 2) : convert_to_bf16(row, k.type, element);
      const std::uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        dot = fmaf(__uint_as_float(pairs[i] << 16), q_[part][2 * i], dot);
        dot = fmaf(__uint_as_float(pairs[i] & 0xffff0000u), q_[part][2 * i + 1], dot);
      }
    }
#pragma unroll
    for (int o = kRowLanes / 2; o > 0; o /= 2) dot += __shfl_xor_sync(~0u, dot, o);
    const float logit = dot * k.scale * query.scale * kLog2E;
    const float capped = query.softcap > 0 ? cap_logit(query.softcap, logit).x : logit;
    return row == nullptr ? 0.0f : exp2_fast(capped - task_.select.lists.reference[head_.number] * kLog2E);
  }

  const PaperTask& task_;
  PaperHead head_;
  int lane_;
  float q_[2][8];
};

__global__ void __launch_bounds__(kSampleThreads) sample_kernel(const __grid_constant__ PaperTask task) {
  wait_for_predecessor();
  let_successor_start();
  Sampler(task).run();
}

// ---- union -----------------------------------------------------------------------------------------------------------

constexpr int kUnionThreads = 512;
constexpr int kUnionWarps = kUnionThreads / 32;

// blockIdx is (piece, KV head of a sequence): the tokens of its columns that some head of the group takes. A head takes the first
// of its last column's tokens, so that the longest stretch of a column holds the others.
__global__ void __launch_bounds__(kUnionThreads) union_kernel(const __grid_constant__ PaperTask task) {
  extern __shared__ std::int32_t memory[];  // places, sources
  __shared__ int budgets[kMaxGroup];
  __shared__ int2 of_warps[kUnionWarps];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slot = static_cast<int>(blockIdx.y), piece = static_cast<int>(blockIdx.x), group = task.select.group;
  wait_for_predecessor();
  let_successor_start();
  for (int g = warp; g < group; g += kUnionWarps) {
    const int k = find_budget(task, PaperHead(task, slot * group + g), lane);
    if (lane == 0) budgets[g] = k;
  }
  __syncthreads();
  const PaperHead any(task, slot * group);
  const DeviceIndex& index = task.select.index;
  const int pieces = static_cast<int>(gridDim.x), share = (any.count + pieces - 1) / pieces;
  const int first = min(piece * share, any.count), last = min(first + share, any.count);
  const ChosenColumns chosen{memory, memory + (index.capacity + pieces - 1) / pieces};
  int2 before = make_int2(0, 0);  // tokens, columns
  for (int base = first; base < last; base += kUnionThreads) {
    const int c = base + thread;
    const int begin = c < last ? any.begin[c] : 0, size = c < last ? any.begin[c + 1] - begin : 0;
    int taken = 0;
    for (int g = 0; g < group && c < last; ++g)
      taken = max(taken, min(size, budgets[g] - any.start_of[static_cast<std::int64_t>(g) * index.capacity + c]));
    int up_to = taken;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, up_to, o);
      if (lane >= o) up_to += other;
    }
    const std::uint32_t some = __ballot_sync(~0u, taken > 0);
    if (lane == 31) of_warps[warp] = make_int2(up_to, __popc(some));
    __syncthreads();
    const int2 own = lane < kUnionWarps ? of_warps[lane] : make_int2(0, 0);
    const int tokens = before.x + __reduce_add_sync(~0u, lane < warp ? own.x : 0);
    const int columns = before.y + __reduce_add_sync(~0u, lane < warp ? own.y : 0);
    if (taken > 0) chosen.set(columns + __popc(some & ((1u << lane) - 1)), tokens + up_to - taken, begin);
    before.x += __reduce_add_sync(~0u, own.x);
    before.y += __reduce_add_sync(~0u, own.y);
    __syncthreads();
  }
  const DeviceLists& lists = task.select.lists;
  const int stretch = slot * pieces + piece, offset = last > first ? any.begin[first] : 0;
  if (thread == 0) {
    lists.token_first[stretch] = offset;
    lists.token_count[stretch] = before.x;
    lists.represented_count[stretch] = 0;
  }
  list_tokens(chosen, before.y, before.x, index.tokens + static_cast<std::int64_t>(slot) * index.token_capacity,
              lists.tokens + static_cast<std::int64_t>(slot) * lists.token_stride + offset);
}

std::size_t carve(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, void* scratch,
                  PaperTask& task) {
  const auto slots = static_cast<std::size_t>(kv.sequences) * static_cast<std::size_t>(kv.kv_heads);
  const std::size_t heads = slots * static_cast<std::size_t>(query.shape.group());
  const std::size_t cells = heads * static_cast<std::size_t>(index.capacity);
  // no fewer tokens have more samples
  const FitPlaces most = fit_places(std::max(index.token_capacity, 64), options);
  task.sample_stride = static_cast<std::int32_t>(
      (most.head + most.first_end - most.first_begin + most.second_end - most.second_begin + 127) / 64 * 64);
  Carver carver(scratch);
  task.order = carver.take<std::int32_t>(cells);
  task.start = carver.take<std::int32_t>(cells + heads);
  task.start_of = carver.take<std::int32_t>(cells);
  task.fixed = carver.take<float>(heads);
  task.sample = carver.take<float>(heads * static_cast<std::size_t>(task.sample_stride));
  return carver.used();
}

}  // namespace

std::size_t paper_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options) {
  PaperTask task{};
  return carve(query, kv, index, options, nullptr, task);
}

void choose_by_paper(const SelectTask& select, const Options& options, void* scratch, DeviceStream stream) {
  PaperTask task{};
  task.select = select;
  task.shares = {options.fit_head, options.fit_window, options.fit_first, options.fit_second};
  task.mass = options.mass;
  carve(select.query, select.kv, select.index, options, scratch, task);
  const int slots = select.kv.sequences * select.kv.kv_heads;
  const auto heads = static_cast<unsigned>(slots * select.group);
  const std::size_t bytes = order_bytes(select.index.capacity);
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, order_kernel), "shared memory of the sort");
  const std::size_t most = static_cast<std::size_t>(device_facts().shared_bytes) - attributes.sharedSizeBytes;
  check_shared_bytes("paper", select.index.capacity, bytes, std::min(most, order_bytes(1 << 16)),  // columns in 16 bits
                     "a larger cluster_size");
  check(cudaFuncSetAttribute(order_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of the sort");
  Launch shape;
  shape.dependent = true;
  shape.grid = heads;
  shape.block = kOrderThreads;
  shape.shared_bytes = bytes;
  launch("order of the clusters", order_kernel, shape, stream, task);
  shape.grid = dim3(heads, kSampleBlocks);
  shape.block = kSampleThreads;
  shape.shared_bytes = 0;
  launch("samples of Algorithm 1", sample_kernel, shape, stream, task);
  shape.grid = dim3(kPaperPieces, static_cast<unsigned>(slots));
  shape.block = kUnionThreads;
  shape.shared_bytes =
      static_cast<std::size_t>((select.index.capacity + kPaperPieces - 1) / kPaperPieces) * 2 * sizeof(std::int32_t);
  launch("union of the heads", union_kernel, shape, stream, task);
}

}  // namespace tactic::cuda
