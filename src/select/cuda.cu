// K1: one thread block scores and chooses a piece of a KV head's clusters; the blocks of a head form a thread-block cluster, in
// which they exchange the softmax normaliser. Lists and counts stay on the device.
#include <algorithm>

#include "core/error.h"
#include "select/cuda.h"
#include "select/cuda_choose.h"
#include "select/loss.h"

namespace tactic::cuda {
namespace {

// Columns of the index into shared memory, in the background; L2 fetches what the step reads once q is there.
template <typename Shape>
__device__ void fetch_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
  const std::int64_t at = static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first;
  const std::int32_t* begin = task.index.begin + static_cast<std::int64_t>(piece.slot) * (task.index.capacity + 64) + piece.first;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread * 4; i < piece.count; i += threads * 4) {
    copy_async(shared.spread + i, task.index.spread + at + i);
    if constexpr (Shape::kInt8) copy_async(shared.scale + i, task.index.centroid_scale + at + i);
  }
  for (int i = thread * 4; i < piece.count + 1; i += threads * 4) copy_async(shared.begin + i, begin + i);
}

// The tokens that are attended without being listed. Reports a length that cannot be.
__device__ FixedTokens fixed_tokens(const SelectTask& task, const Piece& piece, bool& sound) {
  const int length = *(task.kv.lengths + piece.sequence);
  const int first = task.index.range[2 * piece.sequence];
  const int last = task.index.range[2 * piece.sequence + 1];
  sound = length >= 0 && length <= task.kv.max_length && last <= length;
  const bool ordered = first >= 0 && first <= last && task.index.clusters[piece.slot] >= 0 &&
                       task.index.clusters[piece.slot] <= task.index.capacity;
  if (threadIdx.x == 0 && piece.rank == 0) {
    if (!sound) atomicOr(task.status + piece.sequence, device_status::bad_length);
    if (!ordered) atomicOr(task.status + piece.sequence, device_status::bad_index);
  }
  sound = sound && ordered;
  return sound ? FixedTokens{first, last - first, length - (last - first)} : FixedTokens{0, 0, 0};
}

template <typename Shape>
__global__ void __launch_bounds__(512, 1) select_kernel(const __grid_constant__ SelectTask task) {
  extern __shared__ __align__(16) std::byte memory[];
  constexpr int kStages = Shape::kChunks <= 2 ? 2 : 1;  // centroid tiles a warp loads ahead: registers
  if (task.lists.pieces > 1) cluster_arrive();
  const Piece piece(task);
  SelectShared<Shape> shared;
  shared.place(memory, task.columns, task.index.part_capacity, piece.warps);

  // What the index holds does not depend on the kernel before: it may be read before that has ended.
  fetch_columns(task, piece, shared);
  const int tiles = (piece.count + kTileRows - 1) / kTileRows;
  RowTile<Shape::kChunks> ahead[kStages];
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (piece.warp + s * piece.warps < tiles) load_centroids<Shape>(task, piece, piece.warp + s * piece.warps, ahead[s]);
  }
  wait_copies();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < piece.count; i += static_cast<int>(blockDim.x)) {
    shared.log_size[i] = log2_fast(static_cast<float>(shared.begin[i + 1] - shared.begin[i]));
  }

  wait_for_predecessor();
  let_successor_start();
  bool sound;
  const FixedTokens fixed = fixed_tokens(task, piece, sound);
  for (int member = piece.warp; member < Shape::kGroup; member += piece.warps) stage_query(task, piece, shared, member);
  __syncthreads();
  if (task.lists.pieces > 1) cluster_wait();  // all blocks of the head run
  if (task.spread) {
    const int row_tiles = task.query.shape.head_dim / kTileRows;
    for (int u = piece.rank + piece.pieces * piece.warp; u < piece.parts * row_tiles; u += piece.pieces * piece.warps) {
      share_form(task, piece, shared, u / row_tiles, u % row_tiles);
    }
  }
  if (task.lists.pieces > 1) cluster_arrive();

  for (int tile = piece.warp; tile < tiles;) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      if (tile >= tiles) break;
      score_centroids(task, piece, shared, tile, ahead[s]);
      const int next = tile + kStages * piece.warps;
      if (next < tiles) load_centroids<Shape>(task, piece, next, ahead[s]);
      tile += piece.warps;
    }
  }
  RunningSum sums[Shape::kQueryTiles][2];
  for (int tile = piece.rank + piece.pieces * piece.warp; tile * kTileRows < fixed.count; tile += piece.pieces * piece.warps) {
    RowTile<Shape::kBf16Chunks> rows;
    bool valid[2];
    load_fixed<Shape>(task, piece, fixed, tile, rows, valid);
    score_fixed(task, piece, shared, rows, valid, sums);
  }
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int o = 16; o > 1; o /= 2) {
        const float top = __shfl_xor_sync(~0u, sums[i][k].top, o);
        const float sum = __shfl_xor_sync(~0u, sums[i][k].sum, o);
        sums[i][k].merge(top, sum);
      }
      const int at = (piece.warps + piece.warp) * Shape::kGroup + i * 4 + piece.lane * 2 + k;
      if (piece.lane < 2) {
        shared.top[at] = sums[i][k].top;
        shared.sum[at] = sums[i][k].sum;
      }
    }
  }
  if (task.lists.pieces > 1) cluster_wait();  // half variances are there
  __syncthreads();

  const float total = normaliser(task, piece, shared);
  const int member = static_cast<int>(threadIdx.x);
  if (piece.rank == 0 && member < task.query.shape.group()) {
    task.lists.reference[piece.slot * task.query.shape.group() + member] = total * kLn2;
    if (!isfinite(total) && sound && piece.count > 0) atomicOr(task.status + piece.sequence, device_status::non_finite);
  }
  choose_columns(task, piece, shared, total);
  __syncthreads();
  const Offsets tokens(shared.count, piece), chosen(shared.count + 32, piece), represented(shared.count + 64, piece);
  list_columns(task, piece, shared, tokens.before, chosen.before, represented.before);
  if (threadIdx.x == 0) {
    const int at = piece.slot * piece.pieces + piece.rank;
    task.lists.token_first[at] = piece.count > 0 ? shared.begin[0] : 0;
    task.lists.token_count[at] = sound && piece.count > 0 ? tokens.all : 0;
    task.lists.represented_count[at] = sound && piece.count > 0 ? represented.all : 0;
  }
  __syncthreads();
  if (sound && piece.count > 0) list_tokens(task, piece, shared, chosen.all);
}

// ---- launch ----------------------------------------------------------------------------------------------------------

struct DeviceFacts {
  int processors = 0;
  int shared_bytes = 0;  // a block can have
  bool clusters = false;
};

const DeviceFacts& device_facts() {
  constexpr int kDevices = 64;
  static DeviceFacts facts[kDevices];
  int device = 0;
  check(cudaGetDevice(&device), "current CUDA device");
  DeviceFacts& own = facts[std::min(device, kDevices - 1)];
  if (own.processors == 0) {
    int major = 0, processors = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
    check(cudaDeviceGetAttribute(&own.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "processor count");
    own.clusters = major >= 9;
    own.processors = processors;
  }
  return own;
}

struct Plan {
  int pieces = 1;
  int columns = 0;  // of a piece
  int threads = 256;
};

Plan make_plan(const DeviceKv& kv, const DeviceIndex& index) {
  const DeviceFacts& facts = device_facts();
  constexpr int kPortablePieces = 8;
  constexpr int kFewestColumns = 64;  // a piece: fewer leave warps idle
  Plan plan;
  const int slots = kv.sequences * kv.kv_heads;
  if (facts.clusters) {
    while (plan.pieces < kPortablePieces && slots * plan.pieces * 2 <= 2 * facts.processors &&
           index.capacity / plan.pieces >= 2 * kFewestColumns) {
      plan.pieces *= 2;
    }
  }
  if (slots * plan.pieces <= facts.processors) plan.threads = 512;
  plan.columns = ((index.capacity + plan.pieces - 1) / plan.pieces + kTileRows - 1) / kTileRows * kTileRows;
  return plan;
}

template <int Group, int Dim, bool Int8>
void launch_select(const SelectTask& task, const Plan& plan, cudaStream_t stream) {
  using Shape = SelectShape<Group, Dim, Int8>;
  SelectShared<Shape> measure;
  const std::size_t bytes = measure.place(nullptr, plan.columns, task.index.part_capacity, plan.threads / 32);
  const DeviceFacts& facts = device_facts();
  if (bytes > static_cast<std::size_t>(facts.shared_bytes)) {
    throw Error(Status::unsupported, "capacity: " + std::to_string(task.index.capacity) + " clusters a KV head need " +
                                         std::to_string(bytes) + " bytes of shared memory a block, the device has " +
                                         std::to_string(facts.shared_bytes) + "; use a larger cluster_size");
  }
  check(cudaFuncSetAttribute(select_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of select");
  Launch shape;
  shape.grid = static_cast<unsigned>(task.kv.sequences * task.kv.kv_heads * plan.pieces);
  shape.block = static_cast<unsigned>(plan.threads);
  shape.shared_bytes = bytes;
  shape.cluster = plan.pieces;
  shape.dependent = facts.clusters;
  launch("select", select_kernel<Shape>, shape, stream, task);
}

template <int Group, int Dim>
void launch_type(const SelectTask& task, const Plan& plan, cudaStream_t stream) {
  if (task.index.int8_centroids) {
    launch_select<Group, Dim, true>(task, plan, stream);
  } else {
    launch_select<Group, Dim, false>(task, plan, stream);
  }
}

template <int Group>
void launch_dim(const SelectTask& task, const Plan& plan, cudaStream_t stream) {
  const int dim = task.query.shape.head_dim;
  if (dim <= 64) {
    launch_type<Group, 64>(task, plan, stream);
  } else if (dim <= 128) {
    launch_type<Group, 128>(task, plan, stream);
  } else {
    launch_type<Group, 256>(task, plan, stream);
  }
}

// Stretches of the scratch, each on a 256-byte border.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  T* take(std::size_t count) {
    std::byte* at = base_ + used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

DeviceLists carve(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, void* scratch, std::size_t* bytes) {
  const Plan plan = make_plan(kv, index);
  Carver carver(scratch);
  const auto slots = static_cast<std::size_t>(kv.sequences) * static_cast<std::size_t>(kv.kv_heads);
  const auto pieces = slots * static_cast<std::size_t>(plan.pieces);
  const auto columns = pieces * static_cast<std::size_t>(plan.columns);
  const auto group = static_cast<std::size_t>(query.shape.group());
  DeviceLists lists;
  lists.pieces = plan.pieces;
  lists.token_stride = index.token_capacity;
  lists.represented_stride = plan.columns;
  lists.token_first = carver.take<std::int32_t>(pieces);
  lists.token_count = carver.take<std::int32_t>(pieces);
  lists.represented_count = carver.take<std::int32_t>(pieces);
  lists.reference = carver.take<float>(slots * group);
  lists.represented = carver.take<std::int32_t>(columns);
  lists.log_weight = carver.take<float>(columns * group);
  lists.tokens = carver.take<std::int32_t>(slots * static_cast<std::size_t>(index.token_capacity));
  *bytes = carver.used();
  return lists;
}

}  // namespace

std::size_t select_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options&) {
  std::size_t bytes = 0;
  carve(query, kv, index, nullptr, &bytes);
  return bytes;
}

DeviceLists select_lists(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options&, void* scratch) {
  std::size_t bytes = 0;
  return carve(query, kv, index, scratch, &bytes);
}

void select(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
            const DeviceLists& lists, std::uint32_t* status, void*, DeviceStream stream) {
  const Plan plan = make_plan(kv, index);
  SelectTask task{
      query, kv, index, lists, status, plan.columns, loss_per_row(options.mass), options.spread, options.tail_clusters > 0};
  const int group = query.shape.group();
  if (group <= 4) {
    launch_dim<4>(task, plan, stream);
  } else if (group <= 8) {
    launch_dim<8>(task, plan, stream);
  } else {
    launch_dim<16>(task, plan, stream);
  }
}

}  // namespace tactic::cuda
