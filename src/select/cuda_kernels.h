// The selection kernels, for pieces with few and with many columns. Included by cuda.cu only.
#pragma once

#include "select/cuda_column_lists.h"
#include "select/cuda_exported.h"
#include "select/cuda_fixed.h"
#include "select/cuda_many.h"

namespace tactic::cuda {

// Attention may start once the counts of the step before are gone, which it would take for this step's. By the last warp, which
// has the least to do.
__device__ __forceinline__ void let_attention_start(const SelectTask& task, const Piece& piece) {
  if (threadIdx.x != blockDim.x - 32) return;
  if (task.lists.early_counts != nullptr) {
    __stcg(reinterpret_cast<int4*>(task.lists.early_counts) + piece.slot * piece.pieces + piece.rank, make_int4(0, 0, 0, 0));
    __threadfence();
  }
  let_successor_start();
}

// As DeviceLists::early_counts has them. By one thread, in one store.
__device__ __forceinline__ void tell_counts(const DeviceLists& lists, int stretch, int tokens, int first, int represented) {
  asm volatile(
      "st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(reinterpret_cast<int4*>(lists.early_counts) + stretch),
      "r"(tokens + 1), "r"(first + 1), "r"(represented + 1), "r"(1)
      : "memory");
}

// From a warp's sums to the lists. kMany: a piece has more columns than threads.
template <typename Shape, bool kMany>
__device__ __forceinline__ void finish(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                       std::uint16_t* lists, const float* variances, int tiles, std::uint32_t unfit,
                                       const RunningSum (&sums)[Shape::kQueryTiles][2]) {
  share_sums(piece, shared, sums);
  const float joined = wait_for_sums(piece, shared);
  const int member = piece.lane % Shape::kGroup;
  if (piece.rank == 0 && piece.warp == 0 && piece.lane < task.group) {
    task.lists.reference[piece.slot * task.group + member] = joined * kLn2;
    const bool finite = isfinite(joined) || piece.count == 0;
    const std::uint32_t faults = unfit != 0 ? unfit : finite ? 0 : device_status::non_finite;
    if (faults != 0) atomicOr(task.status + piece.sequence, faults);
  }
  if (task.exported.share != nullptr) [[unlikely]]
    return export_columns<kMany>(task, piece, shared, variances, joined);

  int pairs = 0;
  if (unfit == 0) {
    if constexpr (kMany) {
      pairs = (max(tiles - piece.warp, 0) + 2 * piece.warps - 1) >> (piece.warps == kMostWarps ? 5 : 4);  // 16 warps or 8
    } else {
      pairs = pairs_of_warp(piece, tiles);
    }
  }
  const ChosenOfWarp chosen = judge_to_lists<kMany>(task, piece, shared, lists, variances, joined, pairs);
  __syncthreads();
  const ChosenCounts counts = count_chosen(piece, shared);
  const int stretch = piece.slot * piece.pieces + piece.rank, first = piece.count > 0 ? shared.begin[0] : 0;
  if (threadIdx.x == 0) tell_counts(task.lists, stretch, counts.tokens, first, counts.represented);
  const std::int64_t at = static_cast<std::int64_t>(stretch) * task.lists.represented_stride + counts.first.represented;
  const auto represent = [&] {
#pragma unroll 1
    for (int i = piece.lane; i < chosen.represented.count; i += 32)
      list_represented(task, piece, shared, at + i, chosen.represented.get(i));
  };
  const std::int64_t of_slot = static_cast<std::int64_t>(piece.slot) * task.index.token_capacity;
  const std::int32_t* from = task.index.tokens + of_slot;
  std::int32_t* to = task.lists.tokens + of_slot + first;
  if constexpr (kMany) {
    copy_attended(piece, shared, chosen.attended, counts.first.tokens, from, to, represent);
  } else {
    const ChosenColumns columns{shared.places(), shared.sources(task.columns)};
    list_attended(piece, shared, chosen.attended, columns, counts.first.chosen, counts.first.tokens);
    represent();
    __syncthreads();
    copy_tokens(piece, columns, counts.columns, counts.tokens, from, to);
  }
  if (threadIdx.x == 0) {
    task.lists.token_first[stretch] = first;
    task.lists.token_count[stretch] = counts.tokens;
    task.lists.represented_count[stretch] = counts.represented;
  }
}

// A piece with at most a few columns a thread. The next kernel is for many: kernels of their own, since at batch 1 a step waits
// for the code that it fetches, executed or not: with one kernel for both it takes 22.3 us at 32K and 31.8 at 128K, without the
// code for many 21.7 and 29.8.
template <typename Shape>
__global__ void __launch_bounds__(32 * kMostWarps, 1) select_kernel(const __grid_constant__ SelectTask task) {
  extern __shared__ __align__(16) std::byte memory[];
  const Piece piece(task);
  SelectShared<Shape> shared;
  auto* lists = reinterpret_cast<std::uint16_t*>(
      memory + shared.place(memory, task.columns, task.index.part_capacity, task.query.softcap > 0, task.shape_rows));
  if (piece.pieces > 1) {
    if (threadIdx.x == 0) init_barrier(shared.arrived);
    cluster_arrive_relaxed();
  }

  // What the index holds does not depend on the kernel before: it may be read before that has ended.
  const int tiles = tiles_of_piece(piece);
  CentroidsAhead<Shape> ahead;
  load_first_centroids<Shape>(task, piece, tiles, ahead);
  const CovarianceRows covariances = fetch_covariances(task, piece, shared);
  const QueryRows query(task, piece);
  prefetch_query(task, query);
  ask_for_columns<false>(task, piece, shared);
  if (static_cast<int>(threadIdx.x) < piece.parts) shared.part_end[threadIdx.x] = part_ends(task, piece)[threadIdx.x];
  const ClusteredRange range(task, piece);
  prefetch_fixed(task, piece, fixed_tokens(task, piece, range));
  if (piece.pieces > 1) cluster_wait();  // all blocks of the head run and count what they are sent

  wait_for_predecessor();
  let_attention_start(task, piece);
  const LaneQuery<Shape> of_lane(task, piece, query, piece.warp);
  const FixedTokens fixed = fixed_tokens(task, piece, range);
  wait_copies();  // while q is on its way: blocks that start late have waited for nothing yet
  __syncthreads();
  take_columns(task, piece, shared);
  if (piece.warp < Shape::kGroup) stage_query(task, piece, shared, of_lane, piece.warp);
  if constexpr (Shape::kGroup > 8) {  // there are 8 warps at least
    if (piece.warp + piece.warps < Shape::kGroup)
      stage_query(task, piece, shared, LaneQuery<Shape>(task, piece, query, piece.warp + piece.warps), piece.warp + piece.warps);
  }
  // Always-attended keys are on their way while centroids are scored; earlier where registers have room for them.
  constexpr bool kEarly = Shape::kGroup == 4;
  int fixed_tile = first_fixed_tile(piece);
  RowTile<Shape::kBf16Chunks> keys;
  bool valid[2];
  if (kEarly && fixed_tile * kTileRows < fixed.count) load_fixed<Shape>(task, piece, fixed, fixed_tile, keys, valid);
  __syncthreads();
  if (piece.pieces > 1 && threadIdx.x == 0)
    expect_bytes(shared.arrived, static_cast<std::uint32_t>(piece.pieces * piece.warps * Shape::kGroup * 8));
  sum_forms(task, piece, shared, covariances);
  __syncthreads();
  const float* variances = sum_variances(task, piece, shared);
  if (!kEarly && fixed_tile * kTileRows < fixed.count) load_fixed<Shape>(task, piece, fixed, fixed_tile, keys, valid);

  RunningSum sums[Shape::kQueryTiles][2];
  score_tiles(task, piece, shared, variances, tiles, ahead, sums);
#pragma unroll 1
  while (fixed_tile * kTileRows < fixed.count) {
    score_fixed<Shape>(task, piece, shared, keys, valid, sums);
    fixed_tile += piece.pieces * piece.warps;
    if (fixed_tile * kTileRows < fixed.count) load_fixed<Shape>(task, piece, fixed, fixed_tile, keys, valid);
  }
  finish<Shape, false>(task, piece, shared, lists, variances, tiles, fixed.faults, sums);
}

template <typename Shape>
__global__ void __launch_bounds__(32 * kMostWarps, 1) select_many_kernel(const __grid_constant__ SelectTask task) {
  extern __shared__ __align__(16) std::byte memory[];
  Piece piece;
  piece.place(task);
  // A block that starts late is what the step waits for: what the index and the caller say of it in one trip to memory.
  const int clusters = load_ahead(task.index.clusters + piece.slot), parts = load_ahead(task.index.parts + piece.sequence);
  const std::int32_t* range_of = task.index.range + 2 * piece.sequence;
  const int from = load_ahead(range_of), to = load_ahead(range_of + 1), length = load_ahead(task.kv.lengths + piece.sequence);
  const int thread = static_cast<int>(threadIdx.x);
  const int part_end = thread < task.index.part_capacity ? load_ahead(part_ends(task, piece) + thread) : 0;
  SelectShared<Shape> shared;
  shared.place(memory, task.places);
  if (piece.pieces > 1) {
    if (thread == 0) init_barrier(shared.arrived);
    cluster_arrive_relaxed();
  }
  const QueryRows query(task, piece);
  prefetch_query(task, query);
  const CovarianceRows covariances = covariances_in_memory(task, piece);
  RowTile<Shape::kBf16Chunks> rows;  // of the warp's first form, then of the always-attended keys
  if (task.spread && piece.warp < covariances.tiles) load_form<Shape>(task, piece, covariances, piece.warp, rows);

  piece.cut(task, clusters, parts);
  const int tiles = tiles_of_piece(piece);
  ask_for_columns<true>(task, piece, shared);
  CentroidRing<Shape> ring(task, piece, shared, tiles);
  const ClusteredRange range(task, from, to, clusters);
  // Where a warp has several tiles of always-attended keys, asking for them takes longer than it saves (32 x 32K: a step 107.2 us
  // with, 104.4 without; 8 x 128K: 86.8 and 87.3).
  const FixedTokens guess = fixed_tokens(task, range, length);
  if (guess.count < 2 * piece.pieces * piece.warps * kTileRows) prefetch_fixed(task, piece, guess);
  if (piece.pieces > 1) cluster_wait();

  wait_for_predecessor();
  let_attention_start(task, piece);
  const LaneQuery<Shape> of_lane(task, piece, query, piece.warp);
  const FixedTokens fixed = fixed_tokens(task, piece, range);
  ring.wait_for_others();
  if (thread < piece.parts) shared.part_end[thread] = part_end;
  if (piece.warp < Shape::kGroup) stage_query(task, piece, shared, of_lane, piece.warp);
  if constexpr (Shape::kGroup > 8) {
    if (piece.warp + piece.warps < Shape::kGroup)
      stage_query(task, piece, shared, LaneQuery<Shape>(task, piece, query, piece.warp + piece.warps), piece.warp + piece.warps);
  }
  __syncthreads();
  if (piece.pieces > 1 && thread == 0)
    expect_bytes(shared.arrived, static_cast<std::uint32_t>(piece.pieces * piece.warps * Shape::kGroup * 8));
  const int forms = task.spread ? piece.parts * covariances.tiles : 0;
#pragma unroll 1
  for (int form = piece.warp; form < forms; form += piece.warps) {
    if (form >= min(piece.warps, covariances.tiles)) load_form<Shape>(task, piece, covariances, form, rows);
    sum_form(piece, shared, covariances, form, rows);
  }
  __syncthreads();
  const float* variances = sum_variances(task, piece, shared);

  // A tile of always-attended keys with each of centroids: they come from different memory.
  int fixed_tile = first_fixed_tile(piece);
  bool valid[2];
  if (fixed_tile * kTileRows < fixed.count) load_fixed<Shape>(task, piece, fixed, fixed_tile, rows, valid);
  RunningSum sums[Shape::kQueryTiles][2];
  ring.score(task, piece, shared, variances, sums, [&] {
    if (fixed_tile * kTileRows >= fixed.count) return false;
    score_fixed<Shape>(task, piece, shared, rows, valid, sums);
    fixed_tile += piece.pieces * piece.warps;
    if (fixed_tile * kTileRows >= fixed.count) return false;
    load_fixed<Shape>(task, piece, fixed, fixed_tile, rows, valid);
    return true;
  });
  // The lists of columns take the place of centroids that all warps have left when the first knows all sums.
  finish<Shape, true>(task, piece, shared, reinterpret_cast<std::uint16_t*>(shared.shape), variances, tiles, fixed.faults, sums);
}

}  // namespace tactic::cuda
