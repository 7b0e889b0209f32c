// What the blocks of one selection share: a piece's place in the batch and its shared memory. Included by .cu files only.
#pragma once

#include <cstdint>

#include "core/cuda.h"
#include "core/cuda_ptx.h"
#include "core/device.h"

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

// What the selection kernel leaves for a choice that is made elsewhere, [slots, G, capacity], base 2; or null.
struct SelectExport {
  float* logit = nullptr;
  float* share = nullptr;   // log of a column's estimated share of the head's mass
  float* weight = nullptr;  // log of the weight of its mean V (not relative)
};

// Arguments of the selection kernel. One thread block is one piece: the columns of one (sequence, KV head) that it owns.
struct SelectTask {
  DeviceQuery query;
  DeviceKv kv;
  DeviceIndex index;
  DeviceLists lists;
  SelectExport exported;  // not null: no choice is made here
  std::uint32_t* status;
  int log_pieces;           // thread blocks of a (sequence, head)
  int columns;              // most columns of a piece, a multiple of 16
  float represented_price;  // of a mean V (select/loss.h)
  float loss_per_row;       // the price
  bool spread;
  bool represent;
  Divisor by_block;  // by kv.block_size
};

constexpr int kTileRows = 16;  // clusters or tokens a warp scores at a time: rows of an mma
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
constexpr float kLowest = -1e30f;  // stands for -inf where differences must stay numbers
constexpr int kMostPieces = 16;    // blocks of the largest thread-block cluster

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

// Shared memory of a piece of `columns` columns with `parts` parts and `warps` warps.
template <typename Shape>
struct SelectShared {
  float* mass;             // [columns, kGroup] log2 of the estimated mass; log weights of represented columns in the end
  float* logit;            // [columns, kGroup] base 2, with a softcap only
  float* log_size;         // [columns] base 2
  float* spread;           // [columns]; later the place of a chosen column's tokens in the list
  float* scale;            // [columns] of int8 centroids; later numbers of chosen columns
  std::int32_t* begin;     // [columns + 16]
  float* form;             // [parts, kGroup, kRowTiles] q' shape q by rows of `shape`
  float* half;             // [parts, kGroup] half variance per unit of spread
  std::int32_t* part_end;  // [parts] column behind it
  float* query;            // [kGroup, kDim]
  float* query_scale;      // [kGroup]
  float* sums;             // [kMostPieces * warps, kGroup, 2] maximum and sum of each warp of all pieces
  float* total;            // [kGroup] log2 of the mass
  std::int32_t* count;     // [3, 32] tokens, chosen and represented columns of a warp
  std::byte* query16;      // [kQueryTiles * 8, kBf16Pitch]
  std::byte* query8;       // [kQueryTiles * 8, kInt8Pitch]
  std::uint8_t* code;      // [columns]

  static constexpr __host__ __device__ std::size_t padded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

  // With base null it only measures.
  __host__ __device__ std::size_t place(std::byte* base, int columns, int parts, int pieces, int warps, bool softcap) {
    std::size_t at = 0;
    const auto take = [&](auto*& pointer, std::size_t size) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + at);
      at += padded(size * sizeof(*pointer));
    };
    const auto w = static_cast<std::size_t>(columns);
    take(sums, static_cast<std::size_t>(pieces * warps) * Shape::kGroup * 2);  // first: the same place in all blocks
    take(mass, w * Shape::kGroup);
    take(logit, softcap ? w * Shape::kGroup : 0);
    take(log_size, w);
    take(spread, w);
    take(scale, w);
    take(begin, w + 16);
    take(form, static_cast<std::size_t>(parts) * Shape::kRowTiles * Shape::kGroup);
    take(half, static_cast<std::size_t>(parts) * Shape::kGroup);
    take(part_end, static_cast<std::size_t>(parts));
    take(query, Shape::kGroup * Shape::kDim);
    take(query_scale, Shape::kGroup);
    take(total, Shape::kGroup);
    take(count, 3 * 32);
    take(query16, Shape::kQueryTiles * 8 * Shape::kBf16Pitch);
    take(query8, Shape::kInt8 ? Shape::kQueryTiles * 8 * Shape::kInt8Pitch : 0);
    take(code, w);
    return at;
  }
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
    pieces = 1 << task.log_pieces;
    rank = static_cast<int>(blockIdx.x);
    head = static_cast<int>(blockIdx.y);
    sequence = static_cast<int>(blockIdx.z);
    slot = sequence * task.kv.kv_heads + head;
    warp = static_cast<int>(threadIdx.x) / 32;
    warps = static_cast<int>(blockDim.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    int all = task.index.clusters[slot];
    if (all < 0 || all > task.index.capacity) all = 0;  // reported by fixed_tokens()
    parts = min(task.index.parts[sequence], task.index.part_capacity);
    const int share = (((all + pieces - 1) >> task.log_pieces) + kTileRows - 1) / kTileRows * kTileRows;
    first = min(rank * share, all);
    count = min(share, all - first);
    if (count == 0) first = 0;  // behind the last column addresses are not aligned
  }
};

}  // namespace tactic::cuda
