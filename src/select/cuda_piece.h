// What the blocks of one selection share: a piece's place in the batch and its shared memory. Included by .cu files only.
#pragma once

#include <cstdint>

#include "core/cuda.h"
#include "core/cuda_ptx.h"
#include "core/device.h"
#include "core/options.h"

namespace tactic::cuda {

// Division by a number that the host knows: exact for 0 <= n < 2^31.
struct Divisor {
  std::uint64_t factor = 0;
  int shift = 0;
  static Divisor of(std::int32_t d) {
    int bits = 0;
    while ((std::int64_t{1} << bits) < d) ++bits;
    return {((std::uint64_t{1} << (31 + bits)) + static_cast<std::uint64_t>(d) - 1) / static_cast<std::uint64_t>(d), 31 + bits};
  }
  __device__ __forceinline__ int divide(int n) const {
    return static_cast<int>(static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * factor >> shift);
  }
};

// What the selection kernel leaves for a choice that is made elsewhere, [slots, G, capacity], base 2. share null: nothing; of the
// others each may be null.
struct SelectExport {
  float* logit = nullptr;
  float* share = nullptr;   // log of a column's estimated share of the head's mass
  float* weight = nullptr;  // log of the weight of its mean V (not relative)
};

// Where arrays whose place depends on sizes lie in a piece's shared memory, in bytes: so that a kernel need not find out.
struct SelectPlaces {
  int scale, spread, begin, form, variance, part_end, slope, shape;
};

// Arguments of the selection kernel. One thread block is one piece: the columns of one (sequence, KV head) that it owns.
struct SelectTask {
  DeviceQuery query;
  DeviceKv kv;
  DeviceIndex index;
  DeviceLists lists;
  SelectExport exported;  // not null: no choice is made here
  std::uint32_t* status;
  int group;                // of the query: a division that the kernels should not make
  Divisor by_pieces;        // by the thread blocks of a (sequence, head)
  int columns;              // most columns of a piece, a multiple of 16
  float represented_price;  // of a mean V (select/loss.h)
  float loss_per_row;       // the price
  bool spread;
  bool represent;
  int shape_rows;  // of the covariances that fit into shared memory: all or none
  // With many columns:
  SelectPlaces places;
  int columns_of_warp;  // at most, a multiple of 32
  int room;             // bytes from places.shape on, for centroids, for lists of columns later
  Divisor by_block;     // by kv.block_size
};

// Whether the selection kernel's blocks choose by themselves: goal error.
bool chooses_here(const Options& options);

// What a kernel is given that selects: `pieces` blocks a (sequence, head), no lists, no export.
SelectTask select_task(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, int pieces,
                       std::uint32_t* status);

constexpr int kTileRows = 16;  // clusters or tokens a warp scores at a time: rows of an mma
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
constexpr float kLowest = -1e30f;  // stands for -inf where differences must stay numbers
constexpr int kMostPieces = 8;     // blocks of a thread-block cluster
constexpr int kMostWarps = 16;     // of a block

// Bytes of a row of q in shared memory: quads of lanes that read neighbouring rows at once then hit different banks.
constexpr int row_pitch(int bytes) { return bytes % 128 == 64 ? bytes : bytes + 64; }

// Compile-time shape of a kernel: Group is the group padded to 4, 8 or 16; Dim is head_dim padded to 64, 128 or 256.
template <int Group, int Dim, bool Int8>
struct SelectShape {
  static constexpr int kGroup = Group;
  static constexpr int kDim = Dim;
  static constexpr bool kInt8 = Int8;
  // Columns of q's side of the mma: 4 heads' leading parts, then the same heads' remainders, so that q keeps 15 or 16 bits.
  static constexpr int kQueryTiles = Group / 4;
  static constexpr int kRowTiles = Dim / kTileRows;  // of the covariance
  static constexpr int kBf16Chunks = Dim * 2 / 64;   // 64 bytes of a row that a quad of lanes loads at once
  static constexpr int kChunks = Int8 ? Dim / 64 : kBf16Chunks;
  static constexpr int kBf16Pitch = row_pitch(Dim * 2);
  static constexpr int kInt8Pitch = row_pitch(Dim);
};

// A column of the index as scoring and judging read it.
struct alignas(16) Column {
  float scale;  // of int8 centroids
  float spread;
  float log_size;  // base 2
  float size;
};

// Shared memory of a piece of `columns` columns with `parts` parts. What does not depend on them comes first: constant addresses.
template <typename Shape>
struct SelectShared {
  float* sums;             // [pieces * warps, kGroup, 2] maximum and sum of each warp of all pieces
  std::uint64_t* arrived;  // counts the bytes of `sums`
  float* query;            // [kGroup, kDim]
  float* query_scale;      // [kGroup] of int8
  std::byte* query16;      // [kQueryTiles * 8, kBf16Pitch]
  std::byte* query8;       // [kQueryTiles * 8, kInt8Pitch]
  int2* count;             // [kMostWarps] of a warp: tokens; chosen columns + 2^16 represented ones
  float* form;             // [parts, kGroup, kRowTiles] q' shape q by rows of `shape`
  float* variance;         // [kMostWarps, parts, kGroup] of a head's logits per unit of spread: a warp's own copy
  float* total;            // [kMostWarps, kGroup] log2 of the heads' mass: a warp's own copy
  std::int32_t* part_end;  // [parts] column behind it
  float* mass;             // [columns, kGroup] log2 of the estimated mass; log weights of represented columns in the end
  float* slope;            // [columns, kGroup] squared slope of the softcap, with one only
  Column* column;          // [columns]; later places and sources of the chosen ones. Of many columns only these two:
  float* scale;            // [columns] of int8 centroids
  float* spread;           // [columns]
  std::int32_t* begin;     // [columns + 4]
  uint2* words;            // [columns / 16] of a warp's pairs of tiles, a bit a column: attended; represented
  std::byte* shape;        // [parts, dim, kBf16Pitch] the covariances, or null: they stay in global memory

  static constexpr __host__ __device__ std::size_t padded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

  // With base null it only measures.
  __host__ __device__ std::size_t place(std::byte* base, int columns, int parts, bool softcap, int shape_rows,
                                        bool many = false) {
    std::size_t at = 0;
    const auto take = [&](auto*& pointer, std::size_t size) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + at);
      at += padded(size * sizeof(*pointer));
    };
    const auto w = static_cast<std::size_t>(columns), p = static_cast<std::size_t>(parts);
    take(sums, kMostPieces * kMostWarps * Shape::kGroup * 2);
    take(arrived, 1);
    take(query, Shape::kGroup * Shape::kDim);
    take(query_scale, Shape::kGroup);
    take(query16, Shape::kQueryTiles * 8 * Shape::kBf16Pitch);
    take(query8, Shape::kInt8 ? Shape::kQueryTiles * 8 * Shape::kInt8Pitch : 0);
    take(count, kMostWarps);
    take(total, kMostWarps * Shape::kGroup);
    take(mass, w * Shape::kGroup);
    take(column, many ? 0 : w);
    take(scale, many ? w : 0);
    take(spread, many ? w : 0);
    take(begin, w + 4);
    take(words, many ? 0 : w / kTileRows + kMostWarps);
    take(form, p * Shape::kRowTiles * Shape::kGroup);
    take(variance, kMostWarps * p * Shape::kGroup);
    take(part_end, p);
    take(slope, softcap ? w * Shape::kGroup : 0);
    take(shape, static_cast<std::size_t>(shape_rows) * Shape::kBf16Pitch);
    return at;
  }
  SelectPlaces places_from_null() const {
    const auto of = [](const void* p) { return static_cast<int>(reinterpret_cast<std::uintptr_t>(p)); };
    return {of(scale), of(spread), of(begin), of(form), of(variance), of(part_end), of(slope), of(shape)};
  }
  __device__ void place(std::byte* base, const SelectPlaces& at) {
    place(base, 0, 0, false, 0, true);
    scale = reinterpret_cast<float*>(base + at.scale);
    spread = reinterpret_cast<float*>(base + at.spread);
    begin = reinterpret_cast<std::int32_t*>(base + at.begin);
    form = reinterpret_cast<float*>(base + at.form);
    variance = reinterpret_cast<float*>(base + at.variance);
    part_end = reinterpret_cast<std::int32_t*>(base + at.part_end);
    slope = reinterpret_cast<float*>(base + at.slope);
    shape = base + at.shape;
  }
  // Once all warps have judged: [columns each].
  __device__ std::int32_t* places() const { return reinterpret_cast<std::int32_t*>(column); }
  __device__ std::int32_t* sources(int columns) const { return places() + columns; }
};

// A thread block's place: blockIdx is (piece, KV head, sequence).
struct Piece {
  int slot;  // sequence * kv_heads + head
  int sequence;
  int head;
  int rank;  // among the blocks of the (sequence, head)
  int pieces;
  int first;  // column
  int count;  // columns, 0 or more
  int parts;
  int warp, warps, lane;

  __device__ explicit Piece(const SelectTask& task) {
    place(task);
    cut(task, task.index.clusters[slot], task.index.parts[sequence]);
  }
  Piece() = default;
  // In two steps: where, and with what the index says of it.
  __device__ __forceinline__ void place(const SelectTask& task) {
    pieces = static_cast<int>(gridDim.x);
    rank = static_cast<int>(blockIdx.x);
    head = static_cast<int>(blockIdx.y);
    sequence = static_cast<int>(blockIdx.z);
    slot = sequence * task.kv.kv_heads + head;
    warp = static_cast<int>(threadIdx.x) / 32;
    warps = static_cast<int>(blockDim.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
  }
  __device__ __forceinline__ void cut(const SelectTask& task, int all, int all_parts) {
    if (all < 0 || all > task.index.capacity) all = 0;  // reported by fixed_tokens()
    parts = min(all_parts, task.index.part_capacity);
    const int share = (task.by_pieces.divide(all + pieces - 1) + kTileRows - 1) / kTileRows * kTileRows;
    first = min(rank * share, all);
    count = min(share, all - first);
    if (count == 0) first = 0;  // behind the last column addresses are not aligned
  }
};

}  // namespace tactic::cuda
