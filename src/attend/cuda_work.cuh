// Division of a step's work into equal stretches of tiles, one per thread block, and the way back from a tile to its tokens.
//
// A problem is a (sequence, KV head). Its tiles, in order: the pieces' token lists, sinks, recent tokens, the pieces' represented
// clusters; no tile spans two of these. All problems' tiles form one line of T tiles; thread block b of B takes tiles
// [b T / B, (b + 1) T / B). The cut depends on lengths and B alone, so results are reproducible.
#pragma once

#include "attend/cuda_args.h"
#include "attend/cuda_ptx.cuh"

namespace tactic::cuda {

// How much of each kind a (problem, piece) has, sanitised. Piece 0 has the always-attended tokens too.
struct PieceWork {
  int tokens, first;  // of the token list
  int represented;
};

struct AlwaysWork {
  int sinks, recent_first, recent;
};

__device__ __forceinline__ AlwaysWork always_work(const AttendArgs& a, int sequence, bool report) {
  const int length = a.lengths[sequence];
  const int first = a.range == nullptr ? 0 : a.range[2 * sequence];
  const int last = a.range == nullptr ? 0 : a.range[2 * sequence + 1];
  if (length < 0 || length > a.max_length || first < 0 || last < first || length < last) {
    if (report) atomicOr(a.status + sequence, device_status::bad_length);
    return {0, 0, 0};
  }
  return {first, last, length - last};
}

__device__ __forceinline__ PieceWork piece_work(const AttendArgs& a, int problem, int piece, bool report) {
  const std::size_t at = static_cast<std::size_t>(problem) * a.lists.pieces + piece;
  PieceWork work{a.lists.token_count[at], a.lists.token_first[at],
                 a.lists.represented_count == nullptr ? 0 : a.lists.represented_count[at]};
  const bool bad_tokens = work.tokens < 0 || work.first < 0 || work.first > a.lists.token_stride - work.tokens;
  const bool bad_represented = work.represented < 0 || work.represented > a.lists.represented_stride;
  if (report && (bad_tokens || bad_represented)) atomicOr(a.status + problem / a.kv_heads, device_status::bad_index);
  if (bad_tokens) work.tokens = 0;
  if (bad_represented) work.represented = 0;
  return work;
}

__device__ __forceinline__ int tiles_of(int count, int tile) { return (count + tile - 1) / tile; }

// A thread block's stretch of tiles.
struct Stretch {
  int begin, end;
  int problem;  // of tile `begin`
  int total;    // T
};

// first_tile [problems + 1] in shared memory: tiles before each problem. All threads take part; ends in a barrier.
__device__ inline Stretch divide(const AttendArgs& a, int* first_tile) {
  __shared__ int warp_sum[32];
  __shared__ int owner;
  const int pieces = max(a.lists.pieces, 1);
  const int entries = a.problems * pieces;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int share = (entries + threads - 1) / threads;
  const int begin = min(thread * share, entries), end = min(begin + share, entries);
  const bool report = blockIdx.x == 0;
  // tiles of entry (problem, piece), problem-major
  const auto tiles_at = [&](int problem, int piece, bool tell) {
    int tiles = 0;
    if (a.lists.pieces > 0) {
      const PieceWork work = piece_work(a, problem, piece, tell);
      tiles = tiles_of(work.tokens, kTile) + tiles_of(work.represented, kRepresentedTile);
    }
    if (piece == 0) {
      const AlwaysWork work = always_work(a, problem / a.kv_heads, tell);
      tiles += tiles_of(work.sinks, kTile) + tiles_of(work.recent, kTile);
    }
    return tiles;
  };
  const int first_problem = begin / pieces, first_piece = begin - first_problem * pieces;
  int sum = 0;
  int single = 0;  // the tiles of a share of one entry, so that they need not be read again
#pragma unroll 1
  for (int entry = begin, problem = first_problem, piece = first_piece; entry < end; ++entry) {
    sum += single = tiles_at(problem, piece, report);
    if (++piece == pieces) piece = 0, ++problem;
  }
  int inclusive = sum;
  const int lane = thread % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(kWarp, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == 31) warp_sum[thread / 32] = inclusive;
  __syncthreads();
  int before = inclusive - sum, total = 0;
#pragma unroll 1
  for (int w = 0; w < threads / 32; ++w) {
    if (w < thread / 32) before += warp_sum[w];
    total += warp_sum[w];
  }
#pragma unroll 1
  for (int entry = begin, problem = first_problem, piece = first_piece; entry < end; ++entry) {
    if (piece == 0) first_tile[problem] = before;
    before += share == 1 ? single : tiles_at(problem, piece, false);
    if (++piece == pieces) piece = 0, ++problem;
  }
  if (thread == 0) first_tile[a.problems] = total;
  const auto cut = [&](unsigned b) { return static_cast<int>(static_cast<std::uint64_t>(b) * total / gridDim.x); };
  Stretch stretch{cut(blockIdx.x), cut(blockIdx.x + 1), 0, total};
  __syncthreads();
#pragma unroll 1
  for (int p = thread; p < a.problems; p += threads) {
    if (first_tile[p] <= stretch.begin && stretch.begin < first_tile[p + 1]) owner = p;
  }
  __syncthreads();
  stretch.problem = stretch.begin < stretch.end ? owner : a.problems;
  return stretch;
}

// The thread block whose stretch holds tile x: the largest b with b T / B <= x.
__device__ __forceinline__ int block_of_tile(int x, int total) {
  return static_cast<int>(((static_cast<std::uint64_t>(x) + 1) * gridDim.x - 1) / static_cast<unsigned>(total));
}

// One tile as a warp sees it: lane l knows entry l (token l % 16, or cluster l).
struct Tile {
  int entry = -1;  // token or column of the lane's entry
  int count = 0;   // entries of the tile; 0: no tile
  int sequence = 0;
  int limit = 0;         // entries are below
  int place = 0;         // represented: place of the tile's first entry in `represented`, over all problems and pieces
  std::uint32_t base = 0;  // tokens: begin of the (sequence, KV head) in K (lanes 0-15) or V, 16 bytes; else first column
  bool represented = false;
};

// Finds tiles of ascending number. Lane l holds the l-th list of the current problem: pieces, then (lanes 30, 31) sinks and recent.
class TileFinder {
 public:
  __device__ TileFinder(const AttendArgs& a, const int* first_tile, int problem, int lane)
      : a_(a), first_tile_(first_tile), lane_(lane), problem_(problem - 1) {}

  // Tile `number` of the line, which must exist and not precede the one before.
  __device__ __forceinline__ Tile find(int number) {
    if (number >= list_end_) seek(number);
    const int size = list_represented_ ? kRepresentedTile : kTile;
    const int mine = list_represented_ ? lane_ : lane_ % kTile;
    const int done = (number - list_begin_) * size, left = list_count_ - done;
    Tile tile;
    tile.count = min(left, size);
    tile.sequence = sequence_;
    tile.limit = list_represented_ ? clusters_ : length_;
    tile.base = list_represented_ ? static_cast<std::uint32_t>(problem_) * a_.capacity : base_;
    tile.place = list_first_ + done;
    tile.represented = list_represented_;
    if (mine < left) tile.entry = list_ == nullptr ? tile.place + mine : list_[tile.place + mine];
    return tile;
  }

 private:
  // To the list that holds tile `number`.
  __device__ __forceinline__ void seek(int number) {
    if (number >= end_) enter(number);
    const int local = number - begin_;
    list_represented_ = local >= token_tiles_;
    const int start = list_represented_ ? represented_start_ : token_start_;
    const int list = 31 - __clz(static_cast<int>(__ballot_sync(kWarp, start <= local)));
    list_begin_ = begin_ + __shfl_sync(kWarp, start, list);
    list_count_ = __shfl_sync(kWarp, list_represented_ ? represented_count_ : token_count_, list);
    list_end_ = list_begin_ + tiles_of(list_count_, list_represented_ ? kRepresentedTile : kTile);
    list_first_ = __shfl_sync(kWarp, token_first_, list);
    list_ = list < kMaxPieces ? a_.lists.tokens + static_cast<std::size_t>(problem_) * a_.lists.token_stride : nullptr;
    if (list_represented_) {
      list_first_ = (problem_ * a_.lists.pieces + list) * a_.lists.represented_stride;
      list_ = a_.lists.represented;
    }
  }

  __device__ __forceinline__ void enter(int number) {
    do {
      end_ = first_tile_[++problem_ + 1];
    } while (number >= end_);
    begin_ = first_tile_[problem_];
    sequence_ = problem_ / a_.kv_heads;
    const int kv_head = problem_ - sequence_ * a_.kv_heads;
    const RowSteps& steps = lane_ < kTile ? a_.k : a_.v;
    base_ = kv_head * steps.head + sequence_ * steps.sequence;
    length_ = a_.lengths[sequence_];
    token_count_ = token_first_ = represented_count_ = clusters_ = 0;
    if (lane_ < a_.lists.pieces) {
      const PieceWork work = piece_work(a_, problem_, lane_, false);
      token_count_ = work.tokens;
      token_first_ = work.first;
      represented_count_ = work.represented;
    } else if (lane_ >= kMaxPieces) {
      const AlwaysWork work = always_work(a_, sequence_, false);
      token_count_ = lane_ == kMaxPieces ? work.sinks : work.recent;
      token_first_ = lane_ == kMaxPieces ? 0 : work.recent_first;
    }
    if (a_.clusters != nullptr) clusters_ = min(a_.clusters[problem_], a_.capacity);
    const int tokens = tiles_of(token_count_, kTile), clusters = tiles_of(represented_count_, kRepresentedTile);
    int token_sum = tokens, cluster_sum = clusters;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int t = __shfl_up_sync(kWarp, token_sum, step), c = __shfl_up_sync(kWarp, cluster_sum, step);
      if (lane_ >= step) token_sum += t, cluster_sum += c;
    }
    token_tiles_ = __shfl_sync(kWarp, token_sum, 31);
    token_start_ = token_sum - tokens;
    represented_start_ = token_tiles_ + cluster_sum - clusters;
  }

  const AttendArgs& a_;
  const int* first_tile_;
  int lane_;
  int problem_, sequence_ = 0;
  int begin_ = 0, end_ = 0;  // the problem's tiles
  int length_ = 0, clusters_ = 0;
  std::uint32_t base_ = 0;
  int token_count_ = 0, token_first_ = 0, token_start_ = 0, token_tiles_ = 0;
  int represented_count_ = 0, represented_start_ = 0;
  // the list that the last tile was of
  int list_begin_ = 0, list_end_ = 0;      // tiles
  int list_count_ = 0, list_first_ = 0;    // entries; place of the first one in list_, or its token
  const std::int32_t* list_ = nullptr;     // null: consecutive tokens
  bool list_represented_ = false;
};

}  // namespace tactic::cuda
