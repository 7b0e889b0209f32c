// The fused step: the blocks of a (sequence, KV head) form a thread-block cluster; each scores a piece of the clusters, decides
// on it and attends to its share of the head's tokens. Blocks meet three times: when they exchange the softmax normaliser, what
// they chose, and their results. No list, no partial result lies in global memory.
#pragma once

#include "decode/cuda_fused_index.cuh"
#include "decode/cuda_fused_merge.cuh"
#include "decode/cuda_fused_rows.cuh"

namespace tactic::cuda {

// What the step knows of a sequence's always-attended tokens: none where its length or range is wrong.
struct FusedRange {
  FixedTokens fixed;
  int length;
  std::uint32_t faults;
  __device__ FusedRange(const SelectTask& task, const Piece& piece, const ClusteredRange& range) {
    length = *static_cast<const volatile std::int32_t*>(task.kv.lengths + piece.sequence);
    const bool ranged = range.first >= 0 && range.first <= range.last;
    const bool fits = length >= 0 && length <= task.kv.max_length && ranged && range.last <= length;
    faults = (fits ? 0 : device_status::bad_length) | (range.ordered ? 0 : device_status::bad_index);
    const int gap = range.last - range.first;
    fixed = fits ? FixedTokens{range.first, gap, length - gap, faults} : FixedTokens{0, 0, 0, faults};
  }
};

// The sums of attention to always-attended tokens join those of the centroids.
template <typename Shape>
__device__ __forceinline__ void add_attended(const Piece& piece, const typename Shape::Math& math,
                                             RunningSum (&sums)[Shape::Select::kQueryTiles][2]) {
#pragma unroll
  for (int i = 0; i < Shape::Select::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float2 of = math.sum_of(4 * i + pair_of_lane(piece.lane) + k);
      if (piece.lane >= 2) continue;
      RunningSum& sum = sums[i][k];
      const float top = fmaxf(sum.top, of.x);
      sum.sum = sum.sum * exp2_fast(sum.top - top) + of.y * exp2_fast(of.x - Shape::Math::kLift - top);
      sum.top = top;
    }
  }
}

// A block's tiles have numbers of their own: 0 .. token_tiles - 1 of tokens, those up to `end` of represented columns. A warp
// takes every `kFusedWarps`th. Blocks take the tokens' tiles in turn.
struct TileWalk {
  int next, token_tiles, end;
};

// Tiles of a block out of those of all blocks of the head.
__device__ __forceinline__ int own_tiles(const SelectTask& task, const Piece& piece, int tokens) {
  return task.by_pieces.divide(tiles_of(tokens, kTile) - piece.rank + piece.pieces - 1);
}

template <typename Shape>
class FusedTiles {
  using Select = typename Shape::Select;
  using Math = typename Shape::Math;
  static constexpr int kFoundEach = kLookedTiles / 2;  // tokens of a lane

 public:
  __device__ FusedTiles(const FusedTask& task, const Piece& piece, const FusedShared<Shape>& shared, int length)
      : task_(task),
        piece_(piece),
        shared_(shared),
        rows_(task, piece, length),
        stage_(shared_address(shared.stages + piece.warp * Shape::kStages * Shape::kStageBytes)),
        other_(stage_ + Shape::kStageBytes),
        looked_(shared.rows + piece.warp * kLooked) {}

  TileWalk walk{};
  int count = 0;        // tokens of the head that are walked
  int represented = 0;  // columns of the block

  // Place of the lane's token of tile `tile`.
  __device__ __forceinline__ int place(int tile) const {
    return (piece_.rank + piece_.pieces * tile) * kTile + piece_.lane % kTile;
  }
  // Sends for the first tile, of tokens: run() weighs it. It goes the same way as if run() had sent for it.
  template <typename LookUp>
  __device__ __forceinline__ void start(const LookUp& look_up) {
    const bool tile = walk.next < walk.token_tiles;
    const std::uint32_t* rows = looked_ + (kLookedTiles - 2) * 2 * kTile;
    if (tile) {
      int found[1];
      ask(look_up, walk.next, found);
      settle<1>(walk.next, found);
      rows_.copy_keys(other_, rows);
    }
    commit_copies();
    if (tile) rows_.copy_values(other_, rows);
    commit_copies();
    if (!tile) return;
    ahead_ = {Kind::tokens, masks_[1] & 0xffffu};
    used_ = kLookedTiles - 1;
    walk.next += kFusedWarps;
  }
  // Weighs all tiles; look_up(places, tokens) tells tokens, four tiles ahead of those whose rows are sent for. Each part of the
  // work lies in the code once; two tiles are on their way: K of the tile after the next is sent for once K has been weighed, V
  // once V has been added.
  template <typename LookUp>
  __device__ __forceinline__ void run(Math& math, const LookUp& look_up) {
    int found[kFoundEach], asked = walk.next + (kLookedTiles - used_) * kFusedWarps;  // the tile to be asked for next
    bool holds = false;                                                               // `found` those of the tiles before it
#pragma unroll 1
    for (;;) {
      const bool tokens = walk.next < walk.token_tiles;
      if (tokens && used_ == kLookedTiles) {
#pragma unroll 1
        for (used_ = 0;;) {
          if (holds) settle<0>(asked - kLookedTiles * kFusedWarps, found);
          if (asked < walk.token_tiles) ask(look_up, asked, found);
          asked += kLookedTiles * kFusedWarps;
          if (holds) break;
          holds = true;
        }
      }
      const std::uint32_t* rows = looked_ + used_ * 2 * kTile;
      std::uint32_t p[1][2];
      if (staged_.kind == Kind::tokens) {
        wait_copies<3>();
        __syncwarp();
        if (staged_.valid != 0) math.weigh_keys(stage_, staged_.valid, p);
      } else if (staged_.kind == Kind::represented) {
        wait_copies<2>();
        __syncwarp();
        math.weigh_clusters(stage_, staged_.valid, task_.attend.group, task_.attend.inverse_v_scale);
      }
      __syncwarp();
      if (tokens) rows_.copy_keys(stage_, rows);
      commit_copies();
      if (staged_.kind == Kind::tokens) {
        wait_copies<3>();
        __syncwarp();
        if (staged_.valid != 0) math.add_values(stage_, p);
        __syncwarp();
      }
      staged_ = ahead_;
      ahead_ = {};
      if (tokens) {
        rows_.copy_values(stage_, rows);
        ahead_ = {Kind::tokens, (used_ < 2 ? masks_[0] : masks_[1]) >> used_ % 2 * kTile & 0xffffu};
        ++used_;
      } else if (walk.next < walk.end) {
        ahead_ = {Kind::represented, copy_represented(stage_)};
      }
      commit_copies();
      walk.next += kFusedWarps;
      const std::uint32_t stage = stage_;
      stage_ = other_;
      other_ = stage;
      if (staged_.kind == Kind::none && ahead_.kind == Kind::none) break;
    }
    used_ = kLookedTiles;
  }

 private:
  enum class Kind { none, tokens, represented };
  struct Staged {
    Kind kind = Kind::none;
    unsigned valid = 0;
  };

  // Asks for the tokens of two or four tiles of the warp from `tile` on: the lower lanes' of the first and the third.
  template <int kPairs, typename LookUp>
  __device__ __forceinline__ void ask(const LookUp& look_up, int tile, int (&found)[kPairs]) const {
    int places[kPairs];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) places[k] = min(place_of_lane(tile, k), count - 1);
    look_up(places, found);
  }
  // Leaves their rows in shared memory, from pair kFirst on.
  template <int kFirst, int kPairs>
  __device__ __forceinline__ void settle(int tile, const int (&found)[kPairs]) {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      const RowPair rows = rows_.find(found[k], place_of_lane(tile, k) < count, masks_[kFirst + k]);
      rows_.keep(looked_ + (2 * (kFirst + k) + piece_.lane / kTile) * 2 * kTile, rows);
    }
    __syncwarp();
  }
  __device__ __forceinline__ int place_of_lane(int tile, int k) const {
    return place(tile + kFusedWarps * (2 * k + piece_.lane / kTile));
  }

  __device__ __forceinline__ unsigned copy_represented(std::uint32_t stage) const {
    const int place = (walk.next - walk.token_tiles) * kRepresentedTile + piece_.lane;
    const bool exists = place < represented;
    const int column = exists ? shared_.represented(task_.select.columns)[place] : 0;
    return rows_.template copy_clusters<Select::kGroup>(
        stage, static_cast<unsigned>(piece_.slot * task_.attend.capacity + piece_.first), column, exists, shared_.select.mass);
  }

  const FusedTask& task_;
  const Piece& piece_;
  const FusedShared<Shape>& shared_;
  RowCopier<Shape> rows_;
  std::uint32_t stage_, other_;
  Staged staged_, ahead_;
  std::uint32_t* looked_;            // rows of the tiles that are looked up, [kLookedTiles, 2, kTile]
  unsigned masks_[kFoundEach] = {};  // which of their rows exist, two tiles each
  int used_ = kLookedTiles;          // of them
};

template <typename Shape>
__global__ void __launch_bounds__(32 * kFusedWarps, 1) fused_kernel(const __grid_constant__ FusedTask all) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older devices have no thread-block clusters: it is never launched
  extern __shared__ __align__(16) std::byte memory[];
  using Select = typename Shape::Select;
  using Math = typename Shape::Math;
  const SelectTask& task = all.select;
  const AttendArgs& a = all.attend;
  const Piece piece(task);
  FusedShared<Shape> shared;
  shared.place(memory, all);
  const SelectShared<Select>& select = shared.select;
  const ClusteredRange clustered(task, piece);
  if (threadIdx.x == 0) {
    const FusedRange range(task, piece, clustered);  // a guess
    *shared.fixed_tiles = own_tiles(task, piece, min(range.fixed.count, 1 << 16));
    init_barrier(select.arrived);
    init_barrier(shared.headed);
    init_barrier(shared.listed);
    init_barrier(shared.merged);
  }
  cluster_arrive_relaxed();
  __syncthreads();  // the guess

  // What the index holds does not depend on the kernel before: it may be read before that has ended.
  const int tiles = tiles_of_piece(piece);
  const TileShare share(piece, tiles, *shared.fixed_tiles);
  CentroidsAhead<Select> ahead;
#pragma unroll
  for (int s = 0; s < kCentroidStages<Select>; ++s) {
    if (share.first + s < share.end) load_centroids<Select>(task, piece, share.first + s, ahead[s]);
  }
  const StagedCentroids<Shape> centroids(task, piece, shared, share);
  const CovarianceRows covariances = fetch_covariances(task, piece, select);
  const int forms = task.spread ? piece.parts * covariances.tiles : 0;
  RowTile<Select::kBf16Chunks> form;
  if (piece.warp < forms) load_form<Select>(task, piece, covariances, piece.warp, form);
  const QueryRows query(task, piece);
  prefetch_query(task, query);
  const ColumnsAhead<Shape> columns(task, piece);
  {
    const FusedRange range(task, piece, clustered);  // a guess
    const int place = (piece.rank + piece.pieces * (piece.warps - 1 - piece.warp)) * kTile + piece.lane % kTile;
    if (place < range.fixed.count) RowCopier<Shape>(all, piece, 0).prefetch(range.fixed.token(place));
  }
  columns.prefetch_ids(task, piece);
  columns.store(task, piece, select);
  cluster_wait();  // all blocks of the head run and count what they are sent

  wait_for_predecessor();
  let_successor_start();
  const RawQuery<Shape> raw_query(task, piece, query);
  const FusedRange range(task, piece, clustered);
  FusedTiles<Shape> work(all, piece, shared, range.length);
  const int fixed_tiles = own_tiles(task, piece, range.fixed.count);
  work.walk = TileWalk{piece.warps - 1 - piece.warp, fixed_tiles, fixed_tiles};  // the last warps have the fewest centroids
  work.count = range.fixed.count;
  const bool attends_fixed = work.walk.next < fixed_tiles;
  const auto look_up_fixed = [&](const auto& places, auto& tokens) {
#pragma unroll
    for (unsigned k = 0; k < sizeof(places) / sizeof(places[0]); ++k) tokens[k] = range.fixed.token(places[k]);
  };
  work.start(look_up_fixed);
  if (piece.warp < Select::kGroup) raw_query.stage(task, piece, shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    expect_bytes(select.arrived, static_cast<std::uint32_t>(piece.pieces * piece.warps * Select::kGroup * 8));
    expect_bytes(shared.headed, static_cast<std::uint32_t>(piece.pieces * sizeof(ChosenHeader)));
    expect_parts(all, piece, shared);
  }
#pragma unroll 1
  for (int u = piece.warp; u < forms; u += piece.warps) {
    if (u != piece.warp) load_form<Select>(task, piece, covariances, u, form);
    sum_form(piece, select, covariances, u, form);
  }
  __syncthreads();
  const float* variances = sum_variances(task, piece, select);
  Math math(a, nullptr);
  if (attends_fixed) math.begin(a, shared.raw_query, RawQuery<Shape>::kPitch);
  RunningSum sums[Select::kQueryTiles][2];
  centroids.score(task, piece, select, variances, share, ahead, sums);

  ChosenTokens<Shape> chosen;
  const std::int32_t* ids = task.index.tokens + static_cast<std::int64_t>(piece.slot) * task.index.token_capacity;
#pragma unroll 1
  for (bool listed = false;; listed = true) {
    if (listed || attends_fixed)
      work.run(math, [&](const auto& places, auto& tokens) {
        if (!listed) return look_up_fixed(places, tokens);
        chosen.find(places, tokens);
#pragma unroll
        for (int k = 0; k < kLookedTiles / 2; ++k) {
          const auto source = static_cast<unsigned>(tokens[k]);
          tokens[k] = source < static_cast<unsigned>(task.index.token_capacity) ? __ldg(ids + source) : -1;
        }
      });
    if (listed) break;
    if (attends_fixed) add_attended<Shape>(piece, math, sums);
    share_sums(piece, select, sums);
    if (!attends_fixed) math.begin(a, shared.raw_query, RawQuery<Shape>::kPitch);  // while the sums are on their way
    __syncthreads();                                                               // masses by all warps
    const float joined = wait_for_sums(piece, select);
    if (piece.rank == 0 && piece.warp == 0 && piece.lane < task.group) {
      const bool finite = isfinite(joined) || piece.count == 0;
      const std::uint32_t faults = range.faults != 0 ? range.faults : finite ? 0 : device_status::non_finite;
      if (faults != 0) atomicOr(task.status + piece.sequence, faults);
    }
    const int pairs = range.faults == 0 ? pairs_of_warp(piece, tiles) : 0;
    judge_columns(task, piece, select, variances, joined, pairs);
    __syncthreads();
    const ChosenCounts counts = count_chosen(piece, select);
    Places next = counts.first;
    const ChosenSender<Shape> sender{shared, piece.rank, piece.pieces, task.columns};
    if (piece.warp == 0 && piece.lane < piece.pieces) sender.set_header(piece.lane, counts.tokens, counts.columns);
    std::int32_t* represented = shared.represented(task.columns);
#pragma unroll 1
    for (int pair = 0; pair < pairs; ++pair)
      list_pair(piece, select, sender, pair, next, [&](int place, int c) { represented[place] = c; });
    __syncthreads();
    chosen.wait(all, piece, shared);
    const int token_tiles = own_tiles(task, piece, chosen.count);
    work.count = chosen.count;
    work.represented = counts.represented;
    work.walk = TileWalk{piece.warp, token_tiles, token_tiles + tiles_of(counts.represented, kRepresentedTile)};
  }
  math.end(0, a.group, reinterpret_cast<float*>(shared.stages + piece.warp * Shape::kStages * Shape::kStageBytes), Math::kDim + 4,
           shared.maximum[piece.warp], shared.sum[piece.warp]);
  __syncthreads();
  send_parts(all, piece, shared);
  merge_parts(all, piece, shared);
#endif
}

}  // namespace tactic::cuda
