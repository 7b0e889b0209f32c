// The door of attention on the device: checks shapes, chooses the kernel, lays out scratch, launches.
#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "attend/cuda.h"
#include "attend/cuda_any_math.cuh"
#include "attend/cuda_launch.h"
#include "core/cuda.h"
#include "core/error.h"

namespace tactic::cuda {
namespace {

constexpr std::size_t kStaticShared = 2048;     // of the kernels, rounded up
constexpr std::size_t kMostTableBytes = 16384;  // of WorkTables besides the prefix sums

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

int grid_blocks() { return device_attribute(cudaDevAttrMultiProcessorCount); }

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

struct Scratch {
  std::size_t sums, partial, bytes;
};
Scratch scratch_layout(const Shape& shape, int sequences) {
  const auto problems = static_cast<std::size_t>(sequences) * shape.kv_heads;
  const std::size_t slots = (problems + grid_blocks()) * shape.group();
  Scratch s{};
  s.partial = aligned(slots * sizeof(float2));
  s.bytes = s.partial + aligned(slots * shape.v_head_dim * sizeof(float));
  return s;
}

[[noreturn]] void refuse(const std::string& message) { throw Error(Status::unsupported, "attention on CUDA: " + message); }

void check_shape(const DeviceQuery& query, const DeviceKv& kv) {
  const Shape& shape = query.shape;
  for (const DeviceRows* rows : {&kv.k, &kv.v}) {
    if (rows->dim * size_of(rows->type) % 16 != 0)
      refuse("rows of " + std::to_string(rows->dim) + " elements are no multiple of 16 bytes");
  }
  if (kv.k.dim != shape.head_dim || kv.v.dim != shape.v_head_dim) refuse("dims of K or V differ from the query's");
  if (shape.group() > kMaxGroup) refuse("group of " + std::to_string(shape.group()) + " query heads, at most 16");
  if (static_cast<long>(kv.sequences) * kv.kv_heads > kMaxProblems) {
    refuse(std::to_string(kv.sequences) + " sequences of " + std::to_string(kv.kv_heads) + " KV heads, at most " +
           std::to_string(kMaxProblems) + " together: split the batch");
  }
}

constexpr std::int64_t kReach = std::int64_t{1} << 36;  // bytes: 32 bits of 16

std::uint32_t steps16(std::int64_t bytes, std::int64_t count, const char* what) {
  if (bytes % 16 != 0) refuse(std::string(what) + " of " + std::to_string(bytes) + " bytes is no multiple of 16");
  if (bytes < 0 || bytes * std::max<std::int64_t>(count, 1) > kReach) {
    refuse(std::string(what) + " of " + std::to_string(bytes) + " bytes reaches beyond 64 GiB");
  }
  return static_cast<std::uint32_t>(bytes / 16);
}

// Blocks whose numbers are let through: `block_count`, or where the caller did not say, those whose rows 32 bits of 16 bytes
// reach, so that an address never wraps.
std::int32_t most_blocks(const DeviceKv& kv) {
  if (kv.block_count > 0) return kv.block_count;
  std::int64_t most = std::numeric_limits<std::int32_t>::max();
  for (const DeviceRows* rows : {&kv.k, &kv.v}) {
    const std::int64_t inside = rows->head_stride * kv.kv_heads + rows->token_stride * kv.block_size;
    if (rows->block_stride > 0) most = std::min(most, (kReach - inside) / rows->block_stride);
  }
  return static_cast<std::int32_t>(std::max<std::int64_t>(most, 1));
}

RowSteps row_steps(const DeviceRows& rows, const DeviceKv& kv) {
  if (reinterpret_cast<std::uintptr_t>(rows.data) % 16 != 0) refuse("K or V not aligned to 16 bytes");
  const bool paged = kv.block_table != nullptr;
  return {rows.data, steps16(rows.token_stride, paged ? kv.block_size : kv.max_length, "token stride"),
          steps16(rows.head_stride, kv.kv_heads, "head stride"),
          steps16(paged ? rows.block_stride : 0, kv.block_count, "block stride"),
          steps16(paged ? 0 : rows.sequence_stride, kv.sequences, "sequence stride")};
}

AttendArgs make_args(const DeviceQuery& query, const DeviceKv& kv, const DeviceOutput& output, std::uint32_t* status,
                     void* scratch) {
  AttendArgs a{};
  a.query = query;
  a.output = output;
  a.k = row_steps(kv.k, kv);
  a.v = row_steps(kv.v, kv);
  a.k_scale = kv.k.scale;
  a.v_scale = kv.v.scale;
  a.inverse_v_scale = 1 / kv.v.scale;
  a.k_type = kv.k.type;
  a.v_type = kv.v.type;
  a.lengths = kv.lengths;
  a.block_table = kv.block_table;
  a.max_length = kv.max_length;
  a.max_blocks = kv.max_blocks;
  a.block_size = kv.block_size;
  a.block_count = most_blocks(kv);
  a.block_shift =
      std::has_single_bit(static_cast<unsigned>(kv.block_size)) ? std::countr_zero(static_cast<unsigned>(kv.block_size)) : -1;
  a.problems = kv.sequences * kv.kv_heads;
  a.kv_heads = kv.kv_heads;
  a.by_heads = divisor(static_cast<std::uint32_t>(kv.kv_heads));
  a.by_pieces = divisor(1);
  a.group = query.shape.group();
  a.dim = query.shape.head_dim;
  a.v_dim = query.shape.v_head_dim;
  a.status = status;
  const Scratch layout = scratch_layout(query.shape, kv.sequences);
  auto* base = static_cast<std::byte*>(scratch);
  a.partial_sum = reinterpret_cast<float2*>(base + layout.sums);
  a.partial = reinterpret_cast<float*>(base + layout.partial);
  return a;
}

void take_index(AttendArgs& a, const DeviceIndex& index) {
  a.range = index.range;
  a.clusters = index.clusters;
  a.mean_v = reinterpret_cast<const std::byte*>(index.mean_v);
  a.mean_v_scale = index.mean_v_scale;
  a.capacity = index.capacity;
}

AttendKernel choose_kernel(const AttendArgs& a) {
  const int tiles = a.group > 8 ? 2 : 1;
  AttendKernel kernel;
  if (a.k_type == a.v_type && a.dim == a.v_dim) {
    if (a.k_type == DeviceType::bf16) kernel = bf16_kernel(a.dim, tiles);
    if (a.k_type == DeviceType::f16) kernel = f16_kernel(a.dim, tiles);
    if (a.k_type == DeviceType::fp8_e4m3) kernel = fp8_kernel(a.dim, tiles);
  }
  return kernel.kernel != nullptr ? kernel : any_kernel();
}

// Warps of a thread block: as many as find room for their rings.
Launch lay_out(AttendArgs& a, const AttendKernel& kernel) {
  const std::size_t limit = static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) - kStaticShared;
  const auto chunks = [](int dim, DeviceType type) { return static_cast<int>(dim * size_of(type) / 16); };
  a.ring_bytes = kernel.stages * stage_bytes(chunks(a.dim, a.k_type), chunks(a.v_dim, a.v_type), a.v_dim, a.group,
                                             a.lists.represented_count != nullptr) +
                 kernel.entry_bytes;
  a.math_bytes = kernel.any ? AnyMath::warp_bytes(a.group, a.dim, a.v_dim) / 16 * 16 + 16 : 0;
  const std::size_t own = static_cast<std::size_t>(a.group) * a.v_dim * sizeof(float);
  const std::size_t work = sizeof(AlwaysWork) * a.problems + sizeof(PieceWork) * a.problems * a.lists.pieces;
  a.tables = work <= kMostTableBytes;
  const std::size_t prefix = (static_cast<std::size_t>(a.problems) + 4) / 4 * 16 + (a.tables ? work : 0);
  for (int warps = kernel.warps; warps > 0; --warps) {
    const std::size_t bytes = static_cast<std::size_t>(warps) * (a.ring_bytes + a.math_bytes) + own + prefix;
    if (bytes > limit) continue;
    Launch launch;
    launch.grid = static_cast<unsigned>(grid_blocks());
    launch.block = static_cast<unsigned>(32 * warps);
    launch.shared_bytes = bytes;
    launch.dependent = true;
    return launch;
  }
  refuse("too little shared memory for head dim " + std::to_string(a.dim));
}

void run(AttendArgs& a, DeviceStream stream) {
  const AttendKernel kernel = choose_kernel(a);
  const Launch shape = lay_out(a, kernel);
  check(cudaFuncSetAttribute(kernel.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        "attention: shared memory");
  launch("attention", kernel.kernel, shape, stream, a);
}

}  // namespace

std::size_t attend_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceLists&) {
  check_shape(query, kv);
  return scratch_layout(query.shape, kv.sequences).bytes;
}

void attend_lists(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const DeviceLists& lists,
                  const DeviceOutput& output, std::uint32_t* status, void* scratch, DeviceStream stream) {
  check_shape(query, kv);
  if (lists.pieces > kMaxPieces) refuse(std::to_string(lists.pieces) + " pieces of lists, at most 30");
  if (lists.represented_count != nullptr && lists.represented_stride % 4 != 0) {
    refuse("represented_stride " + std::to_string(lists.represented_stride) + " is no multiple of 4");
  }
  AttendArgs a = make_args(query, kv, output, status, scratch);
  a.lists = lists;
  a.by_pieces = divisor(static_cast<std::uint32_t>(std::max(lists.pieces, 1)));
  take_index(a, index);
  run(a, stream);
}

AttendArgs attend_args(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const DeviceOutput& output,
                       std::uint32_t* status) {
  check_shape(query, kv);
  AttendArgs a = make_args(query, kv, output, status, nullptr);
  take_index(a, index);
  return a;
}

std::size_t attend_dense_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv) {
  return attend_scratch_bytes(query, kv, {});
}

void attend_dense(const DeviceQuery& query, const DeviceKv& kv, const DeviceOutput& output, std::uint32_t* status, void* scratch,
                  DeviceStream stream) {
  check_shape(query, kv);
  AttendArgs a = make_args(query, kv, output, status, scratch);
  run(a, stream);
}

}  // namespace tactic::cuda
