// K1: one thread block scores and chooses a piece of a KV head's clusters; the blocks of a head form a thread-block cluster, in
// which they exchange the softmax normaliser. Lists and counts stay on the device.
#include <algorithm>

#include "core/error.h"
#include "select/cuda.h"
#include "select/cuda_choose.h"
#include "select/cuda_exported.h"
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
  const int ends = piece.count > 0 ? piece.count + 1 : 0;  // an empty piece begins at the last column, on no 16-byte border
  for (int i = thread * 4; i < ends; i += threads * 4) copy_async(shared.begin + i, begin + i);
  const std::int32_t* part_begin = task.index.part_begin + static_cast<std::int64_t>(piece.slot) * (task.index.part_capacity + 1);
  if (thread < piece.parts) shared.part_end[thread] = part_begin[thread + 1];
}

// The tokens that are attended without being listed. Reports a length that cannot be.
__device__ FixedTokens fixed_tokens(const SelectTask& task, const Piece& piece, bool& sound, bool report) {
  const int length = *static_cast<const volatile std::int32_t*>(task.kv.lengths + piece.sequence);
  const int first = task.index.range[2 * piece.sequence];
  const int last = task.index.range[2 * piece.sequence + 1];
  sound = length >= 0 && length <= task.kv.max_length && last <= length;
  const bool ordered = first >= 0 && first <= last && task.index.clusters[piece.slot] >= 0 &&
                       task.index.clusters[piece.slot] <= task.index.capacity;
  if (report && threadIdx.x == 0 && piece.rank == 0) {
    if (!sound) atomicOr(task.status + piece.sequence, device_status::bad_length);
    if (!ordered) atomicOr(task.status + piece.sequence, device_status::bad_index);
  }
  sound = sound && ordered;
  return sound ? FixedTokens{first, last - first, length - (last - first)} : FixedTokens{0, 0, 0};
}

// A tile of always-attended tokens goes to a warp that has the fewest tiles of centroids: from the last warp down.
__device__ __forceinline__ int first_fixed_tile(const Piece& piece) {
  return piece.rank + piece.pieces * (piece.warps - 1 - piece.warp);
}

template <typename Shape>
__global__ void __launch_bounds__(512, 1) select_kernel(const __grid_constant__ SelectTask task) {
  extern __shared__ __align__(16) std::byte memory[];
  constexpr int kStages = Shape::kChunks <= 2 ? 2 : 1;  // centroid tiles a warp loads ahead: registers
  if (task.log_pieces > 0) cluster_arrive();
  const Piece piece(task);
  SelectShared<Shape> shared;
  shared.place(memory, task.columns, task.index.part_capacity, piece.pieces, piece.warps, task.query.softcap > 0);

  // What the index holds does not depend on the kernel before: it may be read before that has ended.
  fetch_columns(task, piece, shared);
  const int tiles = (piece.count + kTileRows - 1) / kTileRows;
  RowTile<Shape::kChunks> ahead[kStages];
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (piece.warp + s * piece.warps < tiles) load_centroids<Shape>(task, piece, piece.warp + s * piece.warps, ahead[s]);
  }
  const int row_tiles = task.query.shape.head_dim / kTileRows;
  const int forms = task.spread ? piece.parts * row_tiles : 0;
  RowTile<Shape::kBf16Chunks> rows;
  if (piece.warp < forms) load_shape<Shape>(task, piece, piece.warp / row_tiles, piece.warp % row_tiles, rows);
  bool sound;
  prefetch_fixed(task, piece, fixed_tokens(task, piece, sound, false), first_fixed_tile(piece));
  wait_copies();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < piece.count; i += static_cast<int>(blockDim.x)) {
    shared.log_size[i] = log2_fast(static_cast<float>(shared.begin[i + 1] - shared.begin[i]));
  }

  wait_for_predecessor();
  let_successor_start();
  for (int member = piece.warp; member < Shape::kGroup; member += piece.warps) stage_query(task, piece, shared, member);
  const FixedTokens fixed = fixed_tokens(task, piece, sound, true);
  __syncthreads();
  for (int u = piece.warp; u < forms; u += piece.warps) {
    if (u != piece.warp) load_shape<Shape>(task, piece, u / row_tiles, u % row_tiles, rows);
    sum_form(piece, shared, u / row_tiles, u % row_tiles, rows);
  }
  __syncthreads();
  sum_half_variances(task, piece, shared);
  __syncthreads();

  RunningSum sums[Shape::kQueryTiles][2];
  {
    CentroidScorer<Shape> scorer(task, piece, shared);
#pragma unroll 1
    for (int tile = piece.warp; tile < tiles; tile += piece.warps) {
      scorer.score(tile, ahead[0], sums);
#pragma unroll
      for (int s = 1; s < kStages; ++s) ahead[s - 1] = ahead[s];
      const int next = tile + kStages * piece.warps;
      if (next < tiles) load_centroids<Shape>(task, piece, next, ahead[kStages - 1]);
    }
  }
  if (first_fixed_tile(piece) * kTileRows < fixed.count) {
    const QueryFragments<Shape, Shape::kBf16Chunks> query(shared.query16, Shape::kBf16Pitch, piece.lane);
#pragma unroll 1
    for (int tile = first_fixed_tile(piece); tile * kTileRows < fixed.count; tile += piece.pieces * piece.warps) {
      bool valid[2];
      load_fixed<Shape>(task, piece, fixed, tile, rows, valid);
      score_fixed<Shape>(task, piece, query, rows, valid, sums);
    }
  }
  if (task.log_pieces > 0) cluster_wait();  // all blocks of the head run
  share_sums(piece, shared, sums);
  if (task.log_pieces > 0) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  join_sums(piece, shared);
  __syncthreads();

  const int member = static_cast<int>(threadIdx.x);
  if (piece.rank == 0 && member < task.query.shape.group()) {
    const float total = shared.total[member];
    task.lists.reference[piece.slot * task.query.shape.group() + member] = total * kLn2;
    if (!isfinite(total) && sound && piece.count > 0) atomicOr(task.status + piece.sequence, device_status::non_finite);
  }
  if (task.exported.share != nullptr) return export_columns(task, piece, shared);
  // Arrays that scoring has left: candidates of all warps, then the chosen columns and their places.
  auto* candidates = reinterpret_cast<std::int32_t*>(shared.scale);
  const int count = sound ? piece.count : 0;
  const int stride = columns_of_warp(count, piece.warps);
  const int from = min(piece.warp * stride, count);
  const int end = choose_columns(task, piece, shared, from, min(from + stride, count), candidates);
  __syncthreads();
  const ColumnSet set{piece.slot,
                      piece.slot * piece.pieces + piece.rank,
                      piece.first,
                      piece.warp,
                      piece.warps,
                      piece.lane,
                      from,
                      end,
                      candidates,
                      shared.code,
                      shared.begin,
                      reinterpret_cast<std::int32_t*>(shared.spread),
                      reinterpret_cast<std::int32_t*>(shared.log_size)};
  const Offsets tokens(shared.count, set), chosen(shared.count + 32, set), represented(shared.count + 64, set);
  list_columns(task.lists, set, task.query.shape.group(), tokens.before, chosen.before, represented.before,
               [&](int c, int m) { return shared.mass[c * Shape::kGroup + m]; });
  if (threadIdx.x == 0) {
    task.lists.token_first[set.stretch] = count > 0 ? shared.begin[0] : 0;
    task.lists.token_count[set.stretch] = tokens.all;
    task.lists.represented_count[set.stretch] = represented.all;
  }
  __syncthreads();
  if (count > 0) list_tokens(task.index, task.lists, set, chosen.all);
}

// ---- launch ----------------------------------------------------------------------------------------------------------

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
    while (plan.pieces < kPortablePieces && slots * plan.pieces * 2 <= facts.processors &&
           index.capacity / plan.pieces >= 2 * kFewestColumns) {
      plan.pieces *= 2;
    }
  }
  plan.columns = ((index.capacity + plan.pieces - 1) / plan.pieces + kTileRows - 1) / kTileRows * kTileRows;
  // One large block a processor, or two smaller ones when there are more blocks than processors; a small one where each of its
  // warps has a tile at most (one tile: 8.7 us with 256 threads, 9.1 with 512, two and more: 12.6 against 11.4).
  plan.threads = slots * plan.pieces > facts.processors || plan.columns <= 8 * kTileRows ? 256 : 512;
  return plan;
}

template <int Group, int Dim, bool Int8>
void launch_select(const SelectTask& task, const Plan& plan, cudaStream_t stream) {
  using Shape = SelectShape<Group, Dim, Int8>;
  SelectShared<Shape> measure;
  const std::size_t bytes =
      measure.place(nullptr, plan.columns, task.index.part_capacity, plan.pieces, plan.threads / 32, task.query.softcap > 0);
  const DeviceFacts& facts = device_facts();
  if (bytes > static_cast<std::size_t>(facts.shared_bytes)) {
    throw Error(Status::unsupported, "capacity: " + std::to_string(task.index.capacity) + " clusters a KV head need " +
                                         std::to_string(bytes) + " bytes of shared memory a block, the device has " +
                                         std::to_string(facts.shared_bytes) + "; use a larger cluster_size");
  }
  check(cudaFuncSetAttribute(select_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of select");
  Launch shape;
  shape.grid =
      dim3(static_cast<unsigned>(plan.pieces), static_cast<unsigned>(task.kv.kv_heads), static_cast<unsigned>(task.kv.sequences));
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

bool chooses_here(const Options& options) {
  return options.method == Method::tactic && options.goal == Goal::error && !options.promise;
}

// The lists and what else a selection needs, as stretches of the scratch.
struct Carved {
  DeviceLists lists;
  SelectExport exported;
  std::byte* rest = nullptr;  // of `paper`
  std::size_t bytes = 0;      // without it
};

Carved carve(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, void* scratch) {
  const Plan plan = make_plan(kv, index);
  const bool here = chooses_here(options);
  Carver carver(scratch);
  const auto slots = static_cast<std::size_t>(kv.sequences) * static_cast<std::size_t>(kv.kv_heads);
  const auto group = static_cast<std::size_t>(query.shape.group());
  Carved carved;
  DeviceLists& lists = carved.lists;
  lists.pieces = here ? plan.pieces : 1;
  lists.token_stride = index.token_capacity;
  lists.represented_stride = here ? plan.columns : index.capacity;
  const auto pieces = slots * static_cast<std::size_t>(lists.pieces);
  const auto columns = pieces * static_cast<std::size_t>(lists.represented_stride);
  lists.token_first = carver.take<std::int32_t>(pieces);
  lists.token_count = carver.take<std::int32_t>(pieces);
  lists.represented_count = carver.take<std::int32_t>(pieces);
  lists.reference = carver.take<float>(slots * group);
  lists.represented = carver.take<std::int32_t>(columns);
  lists.log_weight = carver.take<float>(columns * group);
  lists.tokens = carver.take<std::int32_t>(slots * static_cast<std::size_t>(index.token_capacity));
  if (!here) {
    const std::size_t cells = slots * group * static_cast<std::size_t>(index.capacity);
    carved.exported = {carver.take<float>(cells), carver.take<float>(cells), carver.take<float>(cells)};
  }
  carved.bytes = carver.used();
  carved.rest = static_cast<std::byte*>(scratch) + carved.bytes;
  return carved;
}

}  // namespace

const DeviceFacts& device_facts() {
  constexpr int kDevices = 64;
  static DeviceFacts facts[kDevices];
  int device = 0;
  check(cudaGetDevice(&device), "current CUDA device");
  DeviceFacts& own = facts[std::min(device, kDevices - 1)];
  if (own.processors == 0) {
    int processors = 0;
    check(cudaDeviceGetAttribute(&own.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "processor count");
    own.clusters = has_sm90_code();
    own.processors = processors;
  }
  return own;
}

std::size_t select_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options) {
  return carve(query, kv, index, options, nullptr).bytes +
         (options.method == Method::paper ? paper_scratch_bytes(query, kv, index) : 0);
}

DeviceLists select_lists(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
                         void* scratch) {
  return carve(query, kv, index, options, scratch).lists;
}

void select(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
            const DeviceLists& lists, std::uint32_t* status, void* scratch, DeviceStream stream) {
  if (options.promise) throw Error(Status::unsupported, "options.promise is 1: the device has no probe of heads; use 0");
  const Plan plan = make_plan(kv, index);
  const bool paper = options.method == Method::paper;
  Carved carved = carve(query, kv, index, options, scratch);
  SelectTask task{};
  task.query = query;
  task.kv = kv;
  task.index = index;
  task.lists = lists;
  if (!chooses_here(options)) task.exported = carved.exported;
  task.status = status;
  while (1 << task.log_pieces < plan.pieces) ++task.log_pieces;
  task.by_block = Divisor::of(kv.block_size);
  task.columns = plan.columns;
  task.loss_per_row = loss_per_row(options.mass);
  task.represented_price = represented_price(task.loss_per_row);
  task.spread = options.spread && !paper;
  task.represent = options.tail_clusters > 0;
  const int group = query.shape.group();
  if (group <= 4) {
    launch_dim<4>(task, plan, stream);
  } else if (group <= 8) {
    launch_dim<8>(task, plan, stream);
  } else {
    launch_dim<16>(task, plan, stream);
  }
  if (paper) {
    choose_by_paper(task, options, carved.rest, stream);
  } else if (options.goal == Goal::mass) {
    choose_by_mass(task, options, stream);
  }
}

}  // namespace tactic::cuda
