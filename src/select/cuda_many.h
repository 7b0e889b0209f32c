// Scoring a piece with many columns: half of its centroids are in shared memory before q is, fetched while the processor would
// wait for the kernel before, and what a warp runs for a tile is short, since that is what bounds it. Included by .cu files only.
#pragma once

#include "select/cuda_stages.h"

namespace tactic::cuda {

// As CentroidScorer for int8, with all that stays the same from tile to tile in registers and rare cases out of the way.
template <typename Shape>
class ManyScorer {
 public:
  __device__ __forceinline__ ManyScorer(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                        const float* variances)
      : task_(task),
        piece_(piece),
        shared_(shared),
        variances_(variances + pair_of_lane(piece.lane)),
        upper_((piece.lane & 2) == 0),
        begin_(shared.begin + column_of_lane(0, piece.lane)),
        scale_(shared.scale + column_of_lane(0, piece.lane)),
        spread_(shared.spread + column_of_lane(0, piece.lane)),
        mass_(shared.mass + column_of_lane(0, piece.lane) * Shape::kGroup + pair_of_lane(piece.lane)),
        count_(piece.count - column_of_lane(0, piece.lane)),
        query_(shared.query8, Shape::kInt8Pitch, piece.lane) {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const float2 unit = *reinterpret_cast<const float2*>(shared.query_scale + i * 4 + pair_of_lane(piece.lane));
      unit_[i][0] = task.query.scale * (kLog2E / kRemainders) * unit.x;
      unit_[i][1] = task.query.scale * (kLog2E / kRemainders) * unit.y;
      take_part(i, 0);
    }
  }

  __device__ __forceinline__ void score(int tile, const RowTile<Shape::kChunks>& rows,
                                        RunningSum (&sums)[Shape::kQueryTiles][2]) {
    int dots[Shape::kQueryTiles][2];
    multiply(rows, dots);
    const int row = tile * kTileRows;
    const float of_rows = scale_[row], spread = spread_[row];
    const float log_size = log2_fast(static_cast<float>(begin_[row + 1] - begin_[row]));
    if (piece_.parts > 1) [[unlikely]] {
      const int c = row + column_of_lane(0, piece_.lane);
      const int part = part_of(shared_.part_end, piece_.parts, piece_.first + c);
#pragma unroll
      for (int i = 0; i < Shape::kQueryTiles; ++i) take_part(i, part);
    }
    const bool inside = row < count_;
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      float x[2], off[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float dot = static_cast<float>(dots[i][k]), scale = of_rows * unit_[i][k];
        if (task_.query.softcap > 0) [[unlikely]] {
          const float2 capped = cap_logit(task_.query.softcap, dot * scale);
          const float slope = capped.y * capped.y;  // logits scatter less
          shared_.slope[(mass_ - shared_.mass) + row * Shape::kGroup + i * 4 + k] = slope;
          x[k] = fmaf(half_[i][k] * slope, spread, capped.x + log_size);
        } else {
          x[k] = fmaf(half_[i][k], spread, fmaf(dot, scale, log_size));
        }
        off[k] = inside ? x[k] - sums[i][k].top : kLowest;
      }
      if (fmaxf(off[0], off[1]) > RunningSum::kSlack) [[unlikely]] {
        sums[i][0].add(x[0]);
        sums[i][1].add(x[1]);
      } else {
        sums[i][0].sum += exp2_fast(off[0]);
        sums[i][1].sum += exp2_fast(off[1]);
      }
      // drops a NaN: the sum remembers it
      *reinterpret_cast<float2*>(mass_ + row * Shape::kGroup + i * 4) = make_float2(fmaxf(x[0], kLowest), fmaxf(x[1], kLowest));
    }
  }

 private:
  static constexpr int kRemainders = 128;  // a unit of q's leading part

  // Dot products in units of the remainder, of this lane's column and heads.
  __device__ __forceinline__ void multiply(const RowTile<Shape::kChunks>& rows, int (&dots)[Shape::kQueryTiles][2]) const {
    int acc[Shape::kQueryTiles][4] = {};
    multiply_int8(query_, rows, acc);
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {  // as join_parts()
        const int own = upper_ ? acc[i][k] : acc[i][2 + k];
        const int other = __shfl_xor_sync(~0u, upper_ ? acc[i][2 + k] : acc[i][k], 2);
        dots[i][k] = upper_ ? own * kRemainders + other : other * kRemainders + own;
      }
    }
  }

  // Half the variances per unit of spread, base 2.
  __device__ __forceinline__ void take_part(int i, int part) {
    const float2 variance = *reinterpret_cast<const float2*>(variances_ + part * Shape::kGroup + i * 4);
    half_[i][0] = variance.x * (0.5f * kLog2E);
    half_[i][1] = variance.y * (0.5f * kLog2E);
  }

  const SelectTask& task_;
  const Piece& piece_;
  const SelectShared<Shape>& shared_;
  const float* variances_;
  bool upper_;
  const std::int32_t* begin_;
  const float *scale_, *spread_;
  float* mass_;
  int count_;  // of the piece's columns from this lane's in the first tile on
  QueryFragments<Shape, Shape::kChunks> query_;
  float unit_[Shape::kQueryTiles][2], half_[Shape::kQueryTiles][2];
};

// Tiles of centroids on their way to shared memory: the first ones before the kernel before has ended, each further one to the
// place of one that is scored. Each lane copies what it reads itself, so that nothing but its own copies is waited for.
template <typename Shape>
class CentroidRing {
  static constexpr int kTileBytes = kTileRows * Shape::kDim;

 public:
  static constexpr int kMostStages = 4, kFewestStages = 2;  // of a warp; nothing between
  static constexpr int stage_bytes(int warps) { return warps * kTileBytes; }

  // Copies before these are complete behind wait_for_others().
  __device__ __forceinline__ CentroidRing(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                          int tiles)
      : deep_(task.room >= kMostStages * stage_bytes(piece.warps)), tiles_(tiles), next_(piece.warp) {
    const int dim = task.query.shape.head_dim;
    const std::int64_t row =
        static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first + piece.warp * kTileRows + piece.lane / 4;
    from_ = reinterpret_cast<const std::byte*>(task.index.centroid8) + row * dim + piece.lane % 4 * 16;
    asm volatile("" : "+l"(from_));  // not to be found out again for each tile
    left_ = dim - piece.lane % 4 * 16;
    half_ = 8 * dim;
    step_ = piece.warps * kTileRows * dim;
    to_ = memory_ = shared.shape + (piece.warp * kTileBytes + piece.lane * 16);
    commit_copies();
#pragma unroll 1
    for (int stage = 0; stage < kMostStages; ++stage) {
      if (deep_ || stage >= kMostStages - kFewestStages) send(piece);
      commit_copies();
    }
    to_ = memory_;
  }
  static __device__ __forceinline__ void wait_for_others() { wait_copies<kMostStages>(); }

  // As score_tiles(); also_do() follows each tile, and is repeated until it returns false.
  template <typename AlsoDo>
  __device__ __forceinline__ void score(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                        const float* variances, RunningSum (&sums)[Shape::kQueryTiles][2],
                                        const AlsoDo& also_do) {
    ManyScorer<Shape> scorer(task, piece, shared, variances);
    const std::byte* end = memory_ + (deep_ ? kMostStages : kFewestStages) * stage_bytes(piece.warps);
    bool more = true;
#pragma unroll 1
    for (int tile = piece.warp; tile < tiles_ || more; tile += piece.warps) {
      if (tile < tiles_) {
        if (deep_) {
          wait_copies<kMostStages - 1>();
        } else {
          wait_copies<kFewestStages - 1>();
        }
        RowTile<Shape::kChunks> rows;
#pragma unroll
        for (int j = 0; j < Shape::kChunks; ++j) {
          rows.low[j] = *reinterpret_cast<const uint4*>(to_ + 2 * j * 512);
          rows.high[j] = *reinterpret_cast<const uint4*>(to_ + (2 * j + 1) * 512);
        }
        scorer.score(tile, rows, sums);
        send(piece);
        commit_copies();
        if (to_ == end) to_ = memory_;
      }
      more = also_do();
    }
  }

 private:
  // The warp's next tile to the next place. What lies beyond head_dim may be anything: q is 0 there.
  __device__ __forceinline__ void send(const Piece& piece) {
    if (next_ < tiles_) {
#pragma unroll
      for (int j = 0; j < Shape::kChunks; ++j) {
        if (j * 64 >= left_) break;
        copy_async(to_ + 2 * j * 512, from_ + j * 64);
        copy_async(to_ + (2 * j + 1) * 512, from_ + half_ + j * 64);
      }
    }
    from_ += step_;
    next_ += piece.warps;
    to_ += stage_bytes(piece.warps);
  }

  bool deep_;
  int tiles_, next_;
  const std::byte* from_;    // this lane's chunks of tile next_: of one row, and half_ bytes behind of another
  int left_, half_, step_;   // bytes of the row from there on; of 8 rows; to the warp's next tile
  std::byte *memory_, *to_;  // places of this lane: the first, the next
};

}  // namespace tactic::cuda
