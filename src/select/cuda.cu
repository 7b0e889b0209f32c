// K1: one thread block scores and chooses a piece of a KV head's clusters; the blocks of a head form a thread-block cluster, in
// which they exchange the softmax normaliser. Lists and counts stay on the device.
#include <algorithm>

#include "core/error.h"
#include "select/cuda.h"
#include "select/cuda_device.h"
#include "select/cuda_kernels.h"
#include "select/loss.h"

namespace tactic::cuda {
namespace {

int columns_of_piece(const DeviceIndex& index, int pieces) {
  return ((index.capacity + pieces - 1) / pieces + kTileRows - 1) / kTileRows * kTileRows;
}

struct Plan {
  int pieces = 1;
  int columns = 0;  // of a piece
  int threads = 256;
};

Plan make_plan(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index) {
  const DeviceFacts& facts = device_facts();
  constexpr int kFewestColumns = 64;  // a piece: fewer leave warps idle
  Plan plan;
  const int slots = kv.sequences * kv.kv_heads;
  // All at once or not at all: thread-block clusters that wait for others to end cost a second turn of the whole chain. Unless
  // one piece's columns need more blocks to fit.
  const int group = query.shape.group() <= 4 ? 4 : query.shape.group() <= 8 ? 8 : 16;
  const std::int64_t most = facts.shared_bytes * 3 / 4 / (4 * group * (query.softcap > 0 ? 2 : 1) + 25);  // columns of a block
  for (int log_pieces = 1;
       1 << log_pieces <= kMostPieces && facts.clusters_at_once[log_pieces] > 0 && index.capacity >> log_pieces >= kFewestColumns;
       ++log_pieces) {
    if (slots > facts.clusters_at_once[log_pieces] && index.capacity / plan.pieces <= most) break;
    plan.pieces = 1 << log_pieces;
  }
  plan.columns = columns_of_piece(index, plan.pieces);
  // One large block a processor, or two smaller ones when there are more blocks than processors; a small one where each of its
  // warps has a tile at most (8 x 32K: 14.0 us with 512 threads, 17.6 with 256; 1 x 32K: 8.9 and 7.9).
  plan.threads = slots * plan.pieces > facts.processors || plan.columns <= 8 * kTileRows ? 256 : 512;
  return plan;
}

void launch_kernel(void (*kernel)(SelectTask), const SelectTask& task, const Plan& plan, std::size_t bytes, cudaStream_t stream) {
  check_shared_bytes("capacity", task.index.capacity, bytes, static_cast<std::size_t>(device_facts().shared_bytes),
                     "a larger cluster_size");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of select");
  Launch shape;
  shape.grid =
      dim3(static_cast<unsigned>(plan.pieces), static_cast<unsigned>(task.kv.kv_heads), static_cast<unsigned>(task.kv.sequences));
  shape.block = static_cast<unsigned>(plan.threads);
  shape.shared_bytes = bytes;
  shape.cluster = plan.pieces;
  shape.dependent = true;
  launch("select", kernel, shape, stream, task);
}

// Shared memory of a block that is in no other's way: two of 256 threads fit on a processor, which keeps 1 KB for each.
std::size_t own_bytes(const Plan& plan) {
  const int bytes = device_facts().shared_bytes;
  return static_cast<std::size_t>(plan.threads == 512 ? bytes : (bytes - 1024) / 2) / 16 * 16;
}

template <typename Shape>
void launch_select(SelectTask task, const Plan& plan, cudaStream_t stream) {
  const auto measure = [&](int shape_rows) {
    return SelectShared<Shape>().place(nullptr, plan.columns, task.index.part_capacity, task.query.softcap > 0, shape_rows) +
           column_lists_bytes(plan.columns);
  };
  // The covariances are copied early where they are in no other block's way.
  const int rows = task.spread ? task.index.part_capacity * task.query.shape.head_dim : 0;
  task.shape_rows = measure(rows) <= own_bytes(plan) ? rows : 0;
  launch_kernel(select_kernel<Shape>, task, plan, measure(task.shape_rows), stream);
}

// Whether a piece has many columns, and room for the least of a ring of centroids.
template <typename Shape>
bool launch_many(SelectTask task, const Plan& plan, cudaStream_t stream) {
  using Ring = CentroidRing<Shape>;
  SelectShared<Shape> shared;
  const std::size_t arrays = shared.place(nullptr, plan.columns, task.index.part_capacity, task.query.softcap > 0, 0, true);
  const std::size_t stage = Ring::stage_bytes(plan.threads / 32),
                    least = std::max(column_lists_bytes(plan.columns), Ring::kFewestStages * stage);
  if (plan.columns <= plan.threads || arrays + least > static_cast<std::size_t>(device_facts().shared_bytes)) return false;
  const std::size_t most = std::max(least, Ring::kMostStages * stage);
  const std::size_t room = arrays + most <= own_bytes(plan) ? most : least;
  task.places = shared.places_from_null();
  task.room = static_cast<int>(room);
  const int round = 2 * kTileRows * plan.threads / 32;  // columns that the warps judge at once
  task.columns_of_warp = (plan.columns + round - 1) / round * 32;
  launch_kernel(select_many_kernel<Shape>, task, plan, arrays + room, stream);
  return true;
}

template <int Group, int Dim>
void launch_type(const SelectTask& task, const Plan& plan, cudaStream_t stream) {
  if (!task.index.int8_centroids) return launch_select<SelectShape<Group, Dim, false>>(task, plan, stream);
  using Shape = SelectShape<Group, Dim, true>;
  if (!launch_many<Shape>(task, plan, stream)) launch_select<Shape>(task, plan, stream);
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

// Thread-block clusters that run at the same time, a block a processor: less than processors / blocks, since a cluster's
// processors are neighbours.
int clusters_of(int blocks, int shared_bytes) {
  const auto kernel = select_kernel<SelectShape<4, 128, true>>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory of select");
  Launch shape;
  shape.block = 32 * kMostWarps;
  shape.shared_bytes = static_cast<std::size_t>(shared_bytes);
  shape.cluster = blocks;
  return clusters_at_once(kernel, shape);
}

// The lists and what else a selection needs, as stretches of the scratch.
struct Carved {
  DeviceLists lists;
  SelectExport exported;
  std::byte* rest = nullptr;  // of `paper`
  std::size_t bytes = 0;      // without it
};

Carved carve(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, void* scratch) {
  const Plan plan = make_plan(query, kv, index);
  const bool here = chooses_here(options);
  Carver carver(scratch);
  const auto slots = static_cast<std::size_t>(kv.sequences) * static_cast<std::size_t>(kv.kv_heads);
  const auto group = static_cast<std::size_t>(query.shape.group());
  Carved carved;
  DeviceLists& lists = carved.lists;
  const bool paper = options.method == Method::paper;
  lists.pieces = here ? plan.pieces : paper ? kPaperPieces : 1;
  lists.token_stride = index.token_capacity;
  lists.represented_stride = here ? plan.columns : paper ? 4 : index.capacity;
  const auto pieces = slots * static_cast<std::size_t>(lists.pieces);
  const auto columns = pieces * static_cast<std::size_t>(lists.represented_stride);
  lists.token_first = carver.take<std::int32_t>(pieces);
  lists.token_count = carver.take<std::int32_t>(pieces);
  lists.represented_count = carver.take<std::int32_t>(pieces);
  lists.reference = carver.take<float>(slots * group);
  if (here) lists.early_counts = carver.take<std::int32_t>(4 * pieces);
  lists.represented = carver.take<std::int32_t>(columns);
  lists.log_weight = carver.take<float>(columns * group);
  lists.tokens = carver.take<std::int32_t>(slots * static_cast<std::size_t>(index.token_capacity));
  if (!here) {
    const std::size_t cells = slots * group * static_cast<std::size_t>(index.capacity);
    carved.exported.share = carver.take<float>(cells);
    (paper ? carved.exported.logit : carved.exported.weight) = carver.take<float>(cells);
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
    own.clusters_at_once[0] = processors;
    for (int i = 1; has_sm90_code() && 1 << i <= kMostPieces; ++i)
      own.clusters_at_once[i] = clusters_of(1 << i, own.shared_bytes);
    own.processors = processors;
  }
  return own;
}

bool chooses_here(const Options& options) {
  return options.method == Method::tactic && options.goal == Goal::error && !options.promise;
}

SelectTask select_task(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, int pieces,
                       std::uint32_t* status) {
  SelectTask task{};
  task.query = query;
  task.group = query.shape.group();
  task.kv = kv;
  task.index = index;
  task.status = status;
  task.by_pieces = Divisor::of(pieces);
  task.by_block = Divisor::of(kv.block_size);
  task.columns = columns_of_piece(index, pieces);
  task.loss_per_row = loss_per_row(options.mass);
  task.represented_price = options.tail_clusters > 0 ? represented_price(task.loss_per_row) : INFINITY;
  task.spread = options.spread && options.method != Method::paper;
  task.represent = options.tail_clusters > 0;
  return task;
}

std::size_t select_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options) {
  return carve(query, kv, index, options, nullptr).bytes +
         (options.method == Method::paper ? paper_scratch_bytes(query, kv, index, options) : 0);
}

DeviceLists select_lists(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
                         void* scratch) {
  return carve(query, kv, index, options, scratch).lists;
}

void select(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
            const DeviceLists& lists, std::uint32_t* status, void* scratch, DeviceStream stream) {
  if (options.promise) throw Error(Status::unsupported, "options.promise is 1: the device has no probe of heads; use 0");
  const Plan plan = make_plan(query, kv, index);
  const bool paper = options.method == Method::paper;
  Carved carved = carve(query, kv, index, options, scratch);
  SelectTask task = select_task(query, kv, index, options, plan.pieces, status);
  task.lists = lists;
  if (!chooses_here(options)) task.exported = carved.exported;
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
