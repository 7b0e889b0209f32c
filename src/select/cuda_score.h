// Estimated masses of a piece's centroids, for all heads of the group at once: logits on tensor cores, variances of the parts,
// their sum with the normaliser's share. Included by .cu files only.
#pragma once

#include "select/cuda_query.h"
#include "select/cuda_sums.h"

namespace tactic::cuda {

// The column of a scored tile that a lane holds, and its heads: 4 i + pair, i = 0 .. kQueryTiles - 1, and the next of each. Two
// lanes share a column.
__device__ __forceinline__ int column_of_lane(int tile, int lane) { return tile * kTileRows + lane / 4 + (lane & 2) * 4; }
__device__ __forceinline__ int pair_of_lane(int lane) { return lane % 2 * 2; }

template <typename Shape>
__device__ __forceinline__ void load_centroids(const SelectTask& task, const Piece& piece, int tile,
                                               RowTile<Shape::kChunks>& rows) {
  const int dim = task.query.shape.head_dim;
  const int bytes = Shape::kInt8 ? dim : dim * 2;
  const auto* data = Shape::kInt8 ? reinterpret_cast<const std::byte*>(task.index.centroid8)
                                  : reinterpret_cast<const std::byte*>(task.index.centroid16);
  const std::int64_t row = static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first + tile * kTileRows;
  const std::byte* at = data + (row + piece.lane / 4) * bytes;
  const bool whole = dim == Shape::kDim;
#pragma unroll
  for (int j = 0; j < Shape::kChunks; ++j) {
    int place = j * 64 + piece.lane % 4 * 16;
    if (!whole && place >= bytes) place = 0;  // q is 0 there
    rows.low[j] = load_once(at + place);
    rows.high[j] = load_once(at + 8 * bytes + place);
  }
}

__device__ __forceinline__ int part_of(const std::int32_t* part_end, int parts, int column) {
  int part = 0;
  while (part + 1 < parts && column >= part_end[part]) ++part;
  return part;
}

// ---- variances -------------------------------------------------------------------------------------------------------

// The parts' covariances, their rows one after the other: in global memory, or copied to shared memory in the background.
struct CovarianceRows {
  const std::byte* data;
  int pitch;
  int tiles;  // of 16 rows, of a part
};

__device__ __forceinline__ CovarianceRows covariances_in_memory(const SelectTask& task, const Piece& piece) {
  const int dim = task.query.shape.head_dim, bytes = dim * 2;
  return {reinterpret_cast<const std::byte*>(task.index.shape) +
              static_cast<std::int64_t>(piece.slot) * task.index.part_capacity * dim * bytes,
          bytes, dim / kTileRows};
}

template <typename Shape>
__device__ __forceinline__ CovarianceRows fetch_covariances(const SelectTask& task, const Piece& piece,
                                                            const SelectShared<Shape>& shared) {
  const int dim = task.query.shape.head_dim, bytes = dim * 2;
  const CovarianceRows rows = covariances_in_memory(task, piece);
  if (task.shape_rows == 0) return rows;
  constexpr int kRowChunks = Shape::kDim / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < piece.parts * dim * kRowChunks; i += static_cast<int>(blockDim.x)) {
    const int row = i / kRowChunks, place = i % kRowChunks * 16;
    if (place < bytes) copy_async(shared.shape + row * Shape::kBf16Pitch + place, rows.data + row * bytes + place);
  }
  return {shared.shape, Shape::kBf16Pitch, dim / kTileRows};
}

// 16 rows of a part's covariance.
template <typename Shape>
__device__ __forceinline__ void load_form(const SelectTask& task, const Piece& piece, const CovarianceRows& covariances,
                                          int number, RowTile<Shape::kBf16Chunks>& rows) {
  const std::byte* at = covariances.data + (number * kTileRows + piece.lane / 4) * covariances.pitch;
  const bool whole = task.query.shape.head_dim == Shape::kDim;
#pragma unroll
  for (int j = 0; j < Shape::kBf16Chunks; ++j) {
    int place = j * 64 + piece.lane % 4 * 16;
    if (!whole && place >= task.query.shape.head_dim * 2) place = 0;  // q is 0 there
    rows.low[j] = *reinterpret_cast<const uint4*>(at + place);
    rows.high[j] = *reinterpret_cast<const uint4*>(at + 8 * covariances.pitch + place);
  }
}

// q' shape q of every head over these rows, into `form`.
template <typename Shape>
__device__ __forceinline__ void sum_form(const Piece& piece, const SelectShared<Shape>& shared, const CovarianceRows& covariances,
                                         int number, const RowTile<Shape::kBf16Chunks>& rows) {
  const QueryFragments<Shape, Shape::kBf16Chunks> query(shared.query16, Shape::kBf16Pitch, piece.lane);
  TileScores<Shape> scores;
  score_bf16(query, rows, piece.lane, scores);
  const int part = number / covariances.tiles, tile = number - part * covariances.tiles;
  const int element = column_of_lane(tile, piece.lane);
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int member = i * 4 + pair_of_lane(piece.lane) + k;
      float sum = scores.v[i][k] * shared.query[member * Shape::kDim + element];
#pragma unroll
      for (int o = 16; o > 1; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
      if (piece.lane < 2) shared.form[(part * Shape::kGroup + member) * Shape::kRowTiles + tile] = sum;
    }
  }
}

// A head's variance per unit of spread: scale^2 q' shape q.
template <typename Shape>
__device__ __forceinline__ float unit_variance(const SelectTask& task, const SelectShared<Shape>& shared, int row, int tiles) {
  const float* of_rows = shared.form + row * Shape::kRowTiles;
  float form = 0;
  if (task.spread) {
#pragma unroll
    for (int t = 0; t < Shape::kRowTiles; ++t) form += t < tiles ? of_rows[t] : 0.0f;
  }
  return form < 0 ? 0.0f : form * (task.query.scale * task.query.scale);  // rounding; a NaN stays
}

// Variances of all parts and heads, for this warp alone, so that no other has to be waited for. Returns [parts, kGroup].
template <typename Shape>
__device__ __forceinline__ const float* sum_variances(const SelectTask& task, const Piece& piece,
                                                      const SelectShared<Shape>& shared) {
  float* own = shared.variance + piece.warp * task.index.part_capacity * Shape::kGroup;
#pragma unroll 1
  for (int row = piece.lane; row < piece.parts * Shape::kGroup; row += 32)
    own[row] = unit_variance(task, shared, row, task.query.shape.head_dim / kTileRows);
  __syncwarp();
  return own;
}

// ---- centroids -------------------------------------------------------------------------------------------------------

// Scores tiles of centroids into shared.mass, log2 of estimated masses.
template <typename Shape>
class CentroidScorer {
 public:
  __device__ CentroidScorer(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared, const float* variances)
      : task_(task),
        piece_(piece),
        shared_(shared),
        variances_(variances),
        query_(Shape::kInt8 ? shared.query8 : shared.query16, Shape::kInt8 ? Shape::kInt8Pitch : Shape::kBf16Pitch, piece.lane) {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const float2 unit = *reinterpret_cast<const float2*>(shared.query_scale + i * 4 + pair_of_lane(piece.lane));
      unit_[i][0] = task.query.scale * kLog2E * (Shape::kInt8 ? unit.x : 1.0f);
      unit_[i][1] = task.query.scale * kLog2E * (Shape::kInt8 ? unit.y : 1.0f);
    }
  }

  __device__ __forceinline__ void score(int tile, const RowTile<Shape::kChunks>& rows,
                                        RunningSum (&sums)[Shape::kQueryTiles][2]) const {
    TileScores<Shape> scores;
    if constexpr (Shape::kInt8) {
      score_int8(query_, rows, piece_.lane, scores);
    } else {
      score_bf16(query_, rows, piece_.lane, scores);
    }
    const int c = column_of_lane(tile, piece_.lane);
    const Column column = shared_.column[c];
    const float* variances = variances_ + pair_of_lane(piece_.lane);
    if (piece_.parts > 1) variances += part_of(shared_.part_end, piece_.parts, piece_.first + c) * Shape::kGroup;
    float spread[Shape::kQueryTiles][2];  // scaled by the square of the softcap's slope: logits scatter less
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        scores.v[i][k] *= column.scale * unit_[i][k];
        spread[i][k] = column.spread;
      }
    }
    const int at = c * Shape::kGroup + pair_of_lane(piece_.lane);
    if (task_.query.softcap > 0) cap(at, scores, spread);
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const float2 variance = *reinterpret_cast<const float2*>(variances + i * 4);
      const float a = fmaf(variance.x * spread[i][0], 0.5f * kLog2E, scores.v[i][0] + column.log_size);
      const float b = fmaf(variance.y * spread[i][1], 0.5f * kLog2E, scores.v[i][1] + column.log_size);
      if (c < piece_.count) {
        sums[i][0].add(a);
        sums[i][1].add(b);
      }
      // drops a NaN: the sum remembers it
      *reinterpret_cast<float2*>(shared_.mass + at + i * 4) = make_float2(fmaxf(a, kLowest), fmaxf(b, kLowest));
    }
  }

 private:
  __device__ __forceinline__ void cap(int at, TileScores<Shape>& scores, float (&spread)[Shape::kQueryTiles][2]) const {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float2 capped = cap_logit(task_.query.softcap, scores.v[i][k]);
        scores.v[i][k] = capped.x;
        shared_.slope[at + i * 4 + k] = capped.y * capped.y;
        spread[i][k] *= capped.y * capped.y;
      }
    }
  }

  const SelectTask& task_;
  const Piece& piece_;
  const SelectShared<Shape>& shared_;
  const float* variances_;
  QueryFragments<Shape, Shape::kChunks> query_;
  float unit_[Shape::kQueryTiles][2];
};

}  // namespace tactic::cuda
