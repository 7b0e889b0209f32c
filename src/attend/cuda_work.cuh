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
  const auto tiles_at = [&](int entry, bool tell) {
    const int problem = entry / pieces, piece = entry % pieces;
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
  int sum = 0;
  int single = 0;  // the tiles of a share of one entry, so that they need not be read again
  for (int entry = begin; entry < end; ++entry) sum += single = tiles_at(entry, report);
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
  for (int w = 0; w < threads / 32; ++w) {
    if (w < thread / 32) before += warp_sum[w];
    total += warp_sum[w];
  }
  for (int entry = begin; entry < end; ++entry) {
    if (entry % pieces == 0) first_tile[entry / pieces] = before;
    before += share == 1 ? single : tiles_at(entry, false);
  }
  if (thread == 0) first_tile[a.problems] = total;
  const auto cut = [&](unsigned b) { return static_cast<int>(static_cast<std::uint64_t>(b) * total / gridDim.x); };
  Stretch stretch{cut(blockIdx.x), cut(blockIdx.x + 1), 0, total};
  __syncthreads();
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
  int entry;     // token or column of the lane's entry
  int count;     // entries of the tile; 0: no tile
  int problem;
  int place;     // represented only: place of the tile's first entry in `represented`, over all problems and pieces
  bool represented;
};

// Finds tiles of ascending number. Lane l holds the l-th list of the current problem: pieces, then (lanes 30, 31) sinks and recent.
class TileFinder {
 public:
  __device__ TileFinder(const AttendArgs& a, const int* first_tile, int problem)
      : a_(a), first_tile_(first_tile), lane_(static_cast<int>(threadIdx.x) % 32) {
    if (problem < a.problems) enter(problem);
  }

  // Tile `number` of the line, which must exist.
  __device__ __forceinline__ Tile find(int number) {
    if (number >= first_tile_[problem_ + 1]) {
      int p = problem_ + 1;
      while (number >= first_tile_[p + 1]) ++p;
      enter(p);
    }
    const int local = number - first_tile_[problem_];
    const bool represented = local >= token_tiles_;
    const int start = represented ? represented_start_ : token_start_;
    const int list = 31 - __clz(static_cast<int>(__ballot_sync(kWarp, start <= local)));
    const int size = represented ? kRepresentedTile : kTile;
    const int done = (local - __shfl_sync(kWarp, start, list)) * size;
    const int left = __shfl_sync(kWarp, represented ? represented_count_ : token_count_, list) - done;
    const int first = __shfl_sync(kWarp, represented ? 0 : token_first_, list) + done;
    Tile tile{-1, min(left, size), problem_, 0, represented};
    const int mine = represented ? lane_ : lane_ % kTile;
    if (represented) {
      const int stretch = (problem_ * a_.lists.pieces + list) * a_.lists.represented_stride;
      tile.place = stretch + first;
      if (mine < left) tile.entry = a_.lists.represented[static_cast<std::size_t>(tile.place) + mine];
    } else if (mine < left) {
      tile.entry = list < kMaxPieces
                       ? a_.lists.tokens[static_cast<std::size_t>(problem_) * a_.lists.token_stride + first + mine]
                       : first + mine;
    }
    return tile;
  }

 private:
  __device__ __forceinline__ int scan(int tiles, int& total) const {
    int inclusive = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(kWarp, inclusive, step);
      if (lane_ >= step) inclusive += below;
    }
    total = __shfl_sync(kWarp, inclusive, 31);
    return inclusive - tiles;
  }

  __device__ __forceinline__ void enter(int problem) {
    problem_ = problem;
    token_count_ = token_first_ = represented_count_ = 0;
    if (lane_ < a_.lists.pieces) {
      const PieceWork work = piece_work(a_, problem, lane_, false);
      token_count_ = work.tokens;
      token_first_ = work.first;
      represented_count_ = work.represented;
    } else if (lane_ >= kMaxPieces) {
      const AlwaysWork work = always_work(a_, problem / a_.kv_heads, false);
      token_count_ = lane_ == kMaxPieces ? work.sinks : work.recent;
      token_first_ = lane_ == kMaxPieces ? 0 : work.recent_first;
    }
    token_start_ = scan(tiles_of(token_count_, kTile), token_tiles_);
    int ignored;
    represented_start_ = token_tiles_ + scan(tiles_of(represented_count_, kRepresentedTile), ignored);
  }

  const AttendArgs& a_;
  const int* first_tile_;
  int lane_;
  int problem_ = 0;
  int token_count_ = 0, token_first_ = 0, token_start_ = 0, token_tiles_ = 0;
  int represented_count_ = 0, represented_start_ = 0;
};

}  // namespace tactic::cuda
