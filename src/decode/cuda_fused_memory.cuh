// What a block of the fused step is given and what it holds in shared memory.
#pragma once

#include "attend/cuda_merge.cuh"
#include "select/cuda_fixed.h"
#include "select/cuda_stages.h"

namespace tactic::cuda {

constexpr int kFusedWarps = 8;
constexpr int kMostFusedPieces = 16;
static_assert(kMostFusedPieces * kFusedWarps <= kMostPieces * kMostWarps);  // room of SelectShared::sums

// Tiles whose tokens a warp looks up at a time, two tokens a lane. Their rows of K and V: 32 numbers a tile.
constexpr int kLookedTiles = 4;
constexpr int kLooked = kLookedTiles * 2 * kTile;

struct FusedTask {
  SelectTask select;
  AttendArgs attend;
  std::int32_t pieces;  // thread blocks of a (sequence, head)
  std::int32_t share;   // quads of the output that a block merges
  SmallDivisor by_share;
};

// Select: shape of the selection; Math: arithmetic of attention, group of at most 8.
template <typename SelectType, typename MathType, int kStagesValue>
struct FusedShape {
  static constexpr int kStages = kStagesValue;  // of a warp
  using Select = SelectType;
  using Math = MathType;
  static constexpr int kQuads = Math::kDim / 4;  // of an output row
  // A tile's rows of K and V; represented clusters; a warp's result.
  static constexpr int kStageBytes = stage_bytes(Math::k_chunks(), Math::v_chunks(), Math::kDim, Select::kGroup, true);
};

// What a block tells the others of its choice.
struct alignas(16) ChosenHeader {
  std::int32_t tokens, columns;
  std::int32_t unused[2];
};
// One of its chosen columns: place of its tokens among the block's, ascending; place in the index, minus that.
struct alignas(8) ChosenEntry {
  std::int32_t place, source;
};

template <typename Shape>
struct FusedShared {
  SelectShared<typename Shape::Select> select;
  std::byte* raw_query;   // [kGroup, kPitch of RawQuery]
  std::uint64_t* headed;  // counts the bytes of `headers`
  std::uint64_t* listed;  // of `entries`
  ChosenHeader* headers;  // [pieces]
  ChosenEntry* entries;   // [pieces, columns]
  std::uint64_t* merged;  // counts the bytes of `parts` and `part_sums`
  float4* parts;          // [pieces, share] quads that this block merges, from every block
  float2* part_sums;      // [pieces, kGroup] maximum and sum of every block
  float (*maximum)[8];    // [warps][8] of the warps' results
  float (*sum)[8];
  std::int32_t* fixed_tiles;  // always-attended ones of the block, as far as they are known early
  std::uint32_t* rows;        // [warps, kLooked] of a warp's next tiles
  unsigned char* stages;      // [warps, kStages, kStageBytes]

  __host__ __device__ std::size_t place(std::byte* base, const FusedTask& task) {
    const SelectTask& s = task.select;
    std::size_t at = select.place(base, s.columns, s.index.part_capacity, s.query.softcap > 0, 0);
    const auto take = [&](auto*& pointer, std::size_t size) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + at);
      at += (size * sizeof(*pointer) + 15) / 16 * 16;
    };
    const auto pieces = static_cast<std::size_t>(task.pieces);
    take(raw_query, static_cast<std::size_t>(Shape::Select::kGroup) * (Shape::Math::kDim * 2 + 16));
    take(headed, 1);
    take(listed, 1);
    take(merged, 1);
    take(headers, pieces);
    take(entries, pieces * static_cast<std::size_t>(s.columns));
    take(parts, pieces * static_cast<std::size_t>(task.share));
    take(part_sums, pieces * Shape::Select::kGroup);
    take(maximum, kFusedWarps);
    take(sum, kFusedWarps);
    take(fixed_tiles, 1);
    take(rows, kFusedWarps * kLooked);
    take(stages, kFusedWarps * Shape::kStages * Shape::kStageBytes);
    return at;
  }
  // Once all warps have judged: [columns] the represented ones, behind places() and sources().
  __device__ std::int32_t* represented(int columns) const { return select.places() + 2 * columns; }
};

}  // namespace tactic::cuda
