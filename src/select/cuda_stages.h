// The stages of a selection as a thread block walks them: forms of the covariances, scores, choice, places in the lists. Between
// them a kernel does what is its own. Included by .cu files only.
#pragma once

#include "select/cuda_choose.h"

namespace tactic::cuda {

// Tiles of centroids a warp loads ahead: as many as find room in registers.
template <typename Shape>
constexpr int kCentroidStages = Shape::kChunks <= 2 ? 2 : 1;
template <typename Shape>
using CentroidsAhead = RowTile<Shape::kChunks>[kCentroidStages<Shape>];

__device__ __forceinline__ int tiles_of_piece(const Piece& piece) { return (piece.count + kTileRows - 1) / kTileRows; }

// A warp's first tiles.
template <typename Shape>
__device__ __forceinline__ void load_first_centroids(const SelectTask& task, const Piece& piece, int tiles,
                                                     CentroidsAhead<Shape>& ahead) {
#pragma unroll
  for (int s = 0; s < kCentroidStages<Shape>; ++s) {
    if (piece.warp + s * piece.warps < tiles) load_centroids<Shape>(task, piece, piece.warp + s * piece.warps, ahead[s]);
  }
}

// q' shape q of every part, head and 16 rows; a barrier of the block on both sides.
template <typename Shape>
__device__ __forceinline__ void sum_forms(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                          const CovarianceRows& covariances) {
  const int forms = task.spread ? piece.parts * covariances.tiles : 0;
#pragma unroll 1
  for (int u = piece.warp; u < forms; u += piece.warps) {
    RowTile<Shape::kBf16Chunks> rows;
    load_form<Shape>(task, piece, covariances, u, rows);
    sum_form(piece, shared, covariances, u, rows);
  }
}

// A warp's tiles: their masses, and their part of the normaliser.
template <typename Shape>
__device__ __forceinline__ void score_tiles(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                            const float* variances, int tiles, CentroidsAhead<Shape>& ahead,
                                            RunningSum (&sums)[Shape::kQueryTiles][2]) {
  constexpr int kStages = kCentroidStages<Shape>;
  const CentroidScorer<Shape> scorer(task, piece, shared, variances);
#pragma unroll 1
  for (int tile = piece.warp; tile < tiles; tile += piece.warps) {
    scorer.score(tile, ahead[0], sums);
#pragma unroll
    for (int s = 1; s < kStages; ++s) ahead[s - 1] = ahead[s];
    const int next = tile + kStages * piece.warps;
    if (next < tiles) load_centroids<Shape>(task, piece, next, ahead[kStages - 1]);
  }
}

// log2 of the mass of head lane % kGroup, once the sums of all warps of all pieces are here.
template <typename Shape>
__device__ __forceinline__ float wait_for_sums(const Piece& piece, const SelectShared<Shape>& shared) {
  if (piece.pieces > 1) {
    wait_for_bytes(shared.arrived);
  } else {
    __syncthreads();
  }
  return join_sums(piece, shared);
}

// Judges `pairs` pairs of a warp's tiles and leaves the warp's counts in shared memory.
template <typename Shape>
__device__ __forceinline__ void judge_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                              const float* variances, float joined, int pairs) {
  const int member = piece.lane % Shape::kGroup;
  float* total = shared.total + piece.warp * Shape::kGroup;
  // An unsound head and the padding of the group have no say: their shares vanish.
  if (piece.lane < Shape::kGroup) total[member] = member < task.group && isfinite(joined) ? joined : -2 * kLowest;
  __syncwarp();
  int2 counts = make_int2(0, 0);
#pragma unroll 1
  for (int pair = 0; pair < pairs; ++pair) judge_pair(task, piece, shared, variances, total, pair, counts);
  counts.x = __reduce_add_sync(~0u, counts.x);
  if (piece.lane == 0) shared.count[piece.warp] = counts;
}

// What a block has chosen, and where this warp's part of it begins. Behind a barrier after judge_columns().
struct ChosenCounts {
  int tokens, columns, represented;
  Places first;
};
template <typename Shape>
__device__ __forceinline__ ChosenCounts count_chosen(const Piece& piece, const SelectShared<Shape>& shared) {
  const int2 of_warp = piece.lane < piece.warps ? shared.count[piece.lane] : make_int2(0, 0);
  const bool earlier = piece.lane < piece.warp;
  const int tokens = __reduce_add_sync(~0u, of_warp.x), columns = __reduce_add_sync(~0u, of_warp.y);
  const int columns_before = __reduce_add_sync(~0u, earlier ? of_warp.y : 0);
  return {tokens, columns % kOneRepresented, columns / kOneRepresented,
          Places{__reduce_add_sync(~0u, earlier ? of_warp.x : 0), columns_before % kOneRepresented,
                 columns_before / kOneRepresented}};
}

}  // namespace tactic::cuda
