// What a block of the fused step has on its way from the index before the kernel before it has ended.
#pragma once

#include "attend/cuda_ring.cuh"
#include "decode/cuda_fused_memory.cuh"

namespace tactic::cuda {

// Tiles of centroids that a warp scores, first .. end - 1. The last warps attend to always-attended tokens as well, those of
// `fixed_tiles` tiles, and score fewer: the sums of all warps are waited for together. Who judges a column does not depend on it.
struct TileShare {
  int first, end;
  __device__ __forceinline__ TileShare(const Piece& piece, int tiles, int fixed_tiles) {
    // A tile of tokens in tiles of centroids (an H200, 5% listed, 1 x 32K: 13.62 us with 2, 13.36 with 3, 13.40 with 4).
    constexpr int kWeight = 3;
    const int low = fixed_tiles / kFusedWarps, more = fixed_tiles % kFusedWarps, plain = kFusedWarps - more;
    const int all = (kWeight * fixed_tiles + tiles + kFusedWarps - 1) / kFusedWarps;
    const int fewer = max(all - kWeight * (low + 1), 0);
    const int rest = max(tiles - more * fewer, 0);
    const int each = __float2int_ru(__fdividef(static_cast<float>(rest), static_cast<float>(plain)));
    first = min(min(piece.warp, plain) * each + max(piece.warp - plain, 0) * fewer, tiles);
    end = min(first + (piece.warp < plain ? each : fewer), tiles);
  }
};

// A warp's centroids beyond those it holds in registers: on their way to its first stage before the kernel before has ended, and
// read again by the lanes that sent for them.
template <typename Shape>
class StagedCentroids {
  using Select = typename Shape::Select;
  static constexpr int kAhead = kCentroidStages<Select>, kTileBytes = 2 * Select::kChunks * 32 * 16;
  static constexpr int kMost = kTile * 2 * row_stride(Shape::Math::k_chunks()) / kTileBytes;  // tiles in a stage

 public:
  __device__ __forceinline__ StagedCentroids(const SelectTask& task, const Piece& piece, const FusedShared<Shape>& shared,
                                             const TileShare& share)
      : lane_memory_(shared.stages + piece.warp * Shape::kStages * Shape::kStageBytes + piece.lane * 16) {
    const std::byte* at =
        reinterpret_cast<const std::byte*>(task.index.centroid8) +
        (static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first + piece.lane / 4) * Select::kDim +
        piece.lane % 4 * 16;
#pragma unroll 1
    for (int k = 0; k < kMost; ++k) {
      const int tile = share.first + kAhead + k;
      if (tile >= share.end) break;
      const std::uint32_t to = shared_address(lane_memory_ + k * kTileBytes);
#pragma unroll
      for (int j = 0; j < Select::kChunks; ++j) {
        copy_16(to + 2 * j * 512, at + tile * kTileRows * Select::kDim + j * 64, 16);
        copy_16(to + (2 * j + 1) * 512, at + (tile * kTileRows + 8) * Select::kDim + j * 64, 16);
      }
    }
    commit_copies();
  }

  // As score_tiles().
  __device__ __forceinline__ void score(const SelectTask& task, const Piece& piece, const SelectShared<Select>& shared,
                                        const float* variances, const TileShare& share, CentroidsAhead<Select>& ahead,
                                        RunningSum (&sums)[Select::kQueryTiles][2]) const {
    const CentroidScorer<Select> scorer(task, piece, shared, variances);
    int k = 0;
#pragma unroll 1
    for (int tile = share.first; tile < share.end; ++tile, ++k) {
      scorer.score(tile, ahead[0], sums);
#pragma unroll
      for (int s = 1; s < kAhead; ++s) ahead[s - 1] = ahead[s];
      const int next = tile + kAhead;
      if (next >= share.end) continue;
      if (k < kMost) {
        if (k == 0) wait_copies<2>();  // all but the first always-attended tile's K and V
        const unsigned char* from = lane_memory_ + k * kTileBytes;
#pragma unroll
        for (int j = 0; j < Select::kChunks; ++j) {
          ahead[kAhead - 1].low[j] = *reinterpret_cast<const uint4*>(from + 2 * j * 512);
          ahead[kAhead - 1].high[j] = *reinterpret_cast<const uint4*>(from + (2 * j + 1) * 512);
        }
      } else {
        load_centroids<Select>(task, piece, next, ahead[kAhead - 1]);
      }
    }
  }

 private:
  const unsigned char* lane_memory_;
};

// What scoring reads of a piece's columns besides centroids: all loads first, so that nothing waits for them that could be on its
// way as well.
template <typename Shape>
class ColumnsAhead {
  static constexpr int kEach = 2;  // of a thread; more are fetched behind them

 public:
  __device__ __forceinline__ ColumnsAhead(const SelectTask& task, const Piece& piece)
      : at_(static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first),
        begin_(task.index.begin + static_cast<std::int64_t>(piece.slot) * (task.index.capacity + 64) + piece.first) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) columns_[k] = load(task, min(place(k), max(piece.count - 1, 0)));
    ends_ = piece.count > 0 ? make_int2(__ldg(begin_), __ldg(begin_ + piece.count)) : make_int2(0, 0);
    const int thread = static_cast<int>(threadIdx.x);
    part_end_ = thread < piece.parts ? __ldg(part_begin(task, piece) + thread + 1) : 0;
  }
  __device__ __forceinline__ void store(const SelectTask& task, const Piece& piece,
                                        const SelectShared<typename Shape::Select>& shared) const {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      if (place(k) < piece.count) put(piece, shared, place(k), columns_[k]);
    }
#pragma unroll 1
    for (int c = place(kEach); c < piece.count; c += static_cast<int>(blockDim.x)) put(piece, shared, c, load(task, c));
    if (static_cast<int>(threadIdx.x) < piece.parts) shared.part_end[threadIdx.x] = part_end_;
  }
  // The L2 cache fetches the token numbers of the piece.
  __device__ __forceinline__ void prefetch_ids(const SelectTask& task, const Piece& piece) const {
    if (ends_.x < 0 || ends_.y > task.index.token_capacity) return;
    const std::int32_t* ids = task.index.tokens + static_cast<std::int64_t>(piece.slot) * task.index.token_capacity;
#pragma unroll 1
    for (int i = ends_.x + 32 * static_cast<int>(threadIdx.x); i < ends_.y; i += 32 * static_cast<int>(blockDim.x))
      prefetch_l2(ids + i);
  }

 private:
  struct Loaded {
    int first, end;
    float scale, spread;
  };
  static __device__ __forceinline__ int place(int k) { return static_cast<int>(threadIdx.x + k * blockDim.x); }
  static __device__ __forceinline__ const std::int32_t* part_begin(const SelectTask& task, const Piece& piece) {
    return task.index.part_begin + static_cast<std::int64_t>(piece.slot) * (task.index.part_capacity + 1);
  }
  __device__ __forceinline__ Loaded load(const SelectTask& task, int c) const {
    return {__ldg(begin_ + c), __ldg(begin_ + c + 1), __ldg(task.index.centroid_scale + at_ + c),
            __ldg(task.index.spread + at_ + c)};
  }
  static __device__ __forceinline__ void put(const Piece& piece, const SelectShared<typename Shape::Select>& shared, int c,
                                             const Loaded& column) {
    const auto tokens = static_cast<float>(column.end - column.first);
    shared.column[c] = {column.scale, column.spread, log2_fast(tokens), tokens};
    shared.begin[c] = column.first;
    if (c == piece.count - 1) shared.begin[c + 1] = column.end;
  }

  std::int64_t at_;
  const std::int32_t* begin_;
  Loaded columns_[kEach];
  int2 ends_;  // of the piece's tokens
  int part_end_;
};

}  // namespace tactic::cuda
