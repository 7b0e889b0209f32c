// Division of a step's work into equal stretches of tiles, one per thread block, and the way back from a tile to its tokens.
//
// A problem is a (sequence, KV head). Its tiles, in order: the pieces' token lists, sinks, recent tokens, the pieces' represented
// clusters; no tile spans two of these. All problems' tiles form one line of T tiles; thread block b of B takes tiles
// [b T / B, (b + 1) T / B). The cut depends on lengths and B alone, so results are reproducible.
#pragma once

#include "attend/cuda_args.h"
#include "attend/cuda_ptx.cuh"

namespace tactic::cuda {

__device__ __forceinline__ int quotient(int n, Divisor d) {
  return d.inverse == 0 ? n : static_cast<int>(__umulhi(static_cast<unsigned>(n), d.inverse));
}

// Not inlined: cold.
[[maybe_unused]] static __device__ __noinline__ void report(std::uint32_t* status, unsigned bits) { atomicOr(status, bits); }

__device__ __forceinline__ int tiles_of(int count, int tile) { return (count + tile - 1) / tile; }

// Always-attended tokens: 0 .. sinks - 1 and first .. first + recent - 1.
struct AlwaysWork {
  int sinks, first, recent;
  bool bad;
};
__device__ __forceinline__ AlwaysWork always_work(const AttendArgs& a, int sequence) {
  const int length = a.lengths[sequence];
  int first = 0, last = 0;
  if (a.range != nullptr) {
    const int2 range = reinterpret_cast<const int2*>(a.range)[sequence];
    first = range.x, last = range.y;
  }
  const bool bad = length < 0 || length > a.max_length || first < 0 || last < first || length < last;
  return {bad ? 0 : first, last, bad ? 0 : length - last, bad};
}

// What a (problem, piece) lists.
struct PieceWork {
  int tokens, represented;
  bool bad;
};
__device__ __forceinline__ PieceWork piece_work(const AttendArgs& a, int entry) {
  const int tokens = a.lists.token_count[entry];
  const int represented = a.lists.represented_count == nullptr ? 0 : a.lists.represented_count[entry];
  const int first = a.lists.token_first[entry];
  const bool bad_tokens = tokens < 0 || first < 0 || first > a.lists.token_stride - tokens;
  const bool bad_represented = represented < 0 || represented > a.lists.represented_stride;
  return {bad_tokens ? 0 : tokens, bad_represented ? 0 : represented, bad_tokens || bad_represented};
}

// A thread block's stretch of tiles. The line is cut into gridDim.x stretches that differ by at most one tile.
struct Stretch {
  int begin, end;
  int problem;       // of tile `begin`
  int size, larger;  // tiles of a stretch; the first `larger` blocks have one more
};

// The thread block whose stretch holds tile x.
__device__ __forceinline__ int block_of_tile(const Stretch& stretch, int x) {
  const unsigned border = static_cast<unsigned>(stretch.larger) * (stretch.size + 1), tile = x;
  if (tile < border) return static_cast<int>(tile / (stretch.size + 1));
  return static_cast<int>(stretch.larger + (tile - border) / stretch.size);
}

// first_tile [problems + 1] in shared memory: tiles before each problem. All threads take part; ends in a barrier.
__device__ __forceinline__ Stretch divide(const AttendArgs& a, int* first_tile) {
  __shared__ int warp_sum[32];
  __shared__ int owner;
  const int pieces = max(a.lists.pieces, 1);
  const int entries = a.problems * pieces;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int share = entries <= threads ? 1 : (entries + threads - 1) / threads;
  const int begin = min(thread * share, entries), end = min(begin + share, entries);
  // Two rounds over the same code, since a block runs all this once and waits for its instructions: sums, then prefix sums.
  int before = 0, total = 0;
#pragma unroll 1
  for (int round = 0; round < 2; ++round) {
    int running = before;
#pragma unroll 1
    for (int entry = begin; entry < end; ++entry) {
      const int problem = quotient(entry, a.by_pieces), sequence = quotient(problem, a.by_heads);
      const bool leads = entry == problem * pieces;
      if (round == 1 && leads) first_tile[problem] = running;
      if (round == 1 && share == 1) break;
      unsigned bad = 0;
      if (leads) {
        const AlwaysWork work = always_work(a, sequence);
        running += tiles_of(work.sinks, kTile) + tiles_of(work.recent, kTile);
        if (work.bad) bad = device_status::bad_length;
      }
      if (a.lists.pieces > 0) {
        const PieceWork work = piece_work(a, entry);
        running += tiles_of(work.tokens, kTile) + tiles_of(work.represented, kRepresentedTile);
        if (work.bad) bad |= device_status::bad_index;
      }
      if (bad != 0 && blockIdx.x == 0) report(a.status + sequence, bad);
    }
    if (round == 1) break;
    int inclusive = running;
    const int lane = thread % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(kWarp, inclusive, step);
      if (lane >= step) inclusive += below;
    }
    if (lane == 31) warp_sum[thread / 32] = inclusive;
    __syncthreads();
    before = inclusive - running;
#pragma unroll 1
    for (int w = 0; w < threads / 32; ++w) {
      if (w < thread / 32) before += warp_sum[w];
      total += warp_sum[w];
    }
  }
  if (thread == 0) first_tile[a.problems] = total;
  Stretch stretch{};
  const unsigned blocks = gridDim.x, block = blockIdx.x;
  stretch.size = static_cast<int>(static_cast<unsigned>(total) / blocks);
  stretch.larger = static_cast<int>(total - stretch.size * blocks);
  stretch.begin = static_cast<int>(block * stretch.size + min(block, static_cast<unsigned>(stretch.larger)));
  stretch.end = stretch.begin + stretch.size + (static_cast<int>(block) < stretch.larger ? 1 : 0);
  __syncthreads();
#pragma unroll 1
  for (int p = thread; p < a.problems; p += threads) {
    if (first_tile[p] <= stretch.begin && stretch.begin < first_tile[p + 1]) owner = p;
  }
  __syncthreads();
  stretch.problem = owner;
  return stretch;
}

// One tile as a warp sees it: lane l knows entry l (token l % 16, or cluster l).
struct Tile {
  int entry = -1;  // token or column of the lane's entry
  int count = 0;   // entries of the tile; 0: no tile
  int sequence = 0;
  int limit = 0;           // entries are below
  int place = 0;           // represented: place of the tile's first entry in `represented`, over all problems and pieces
  std::uint32_t base = 0;  // tokens: begin of the (sequence, KV head) in K (lanes 0-15) or V, 16 bytes; else first column
  bool represented = false;
};

// Finds tiles of ascending number. Lane l holds the l-th list of the current problem: pieces, then (lanes 30, 31) sinks and
// recent.
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
    sequence_ = quotient(problem_, a_.by_heads);
    const int kv_head = problem_ - sequence_ * a_.kv_heads;
    const RowSteps& steps = lane_ < kTile ? a_.k : a_.v;
    base_ = kv_head * steps.head + sequence_ * steps.sequence;
    length_ = a_.lengths[sequence_];
    token_count_ = token_first_ = represented_count_ = clusters_ = 0;
    if (lane_ < a_.lists.pieces) {
      const int entry = problem_ * a_.lists.pieces + lane_;
      const PieceWork work = piece_work(a_, entry);
      token_count_ = work.tokens;
      token_first_ = a_.lists.token_first[entry];
      represented_count_ = work.represented;
    } else if (lane_ >= kMaxPieces) {
      const AlwaysWork work = always_work(a_, sequence_);
      token_count_ = lane_ == kMaxPieces ? work.sinks : work.recent;
      token_first_ = lane_ == kMaxPieces ? 0 : work.first;
    }
    if (a_.clusters != nullptr) clusters_ = min(a_.clusters[problem_], a_.capacity);
    const int tokens = tiles_of(token_count_, kTile), clusters = tiles_of(represented_count_, kRepresentedTile);
    std::uint64_t both = static_cast<std::uint64_t>(clusters) << 32 | static_cast<unsigned>(tokens);
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
      const std::uint64_t below = __shfl_up_sync(kWarp, both, step);
      if (lane_ >= step) both += below;
    }
    token_tiles_ = static_cast<int>(__shfl_sync(kWarp, static_cast<unsigned>(both), 31));
    token_start_ = static_cast<int>(static_cast<unsigned>(both)) - tokens;
    represented_start_ = token_tiles_ + static_cast<int>(both >> 32) - clusters;
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
  int list_begin_ = 0, list_end_ = 0;    // tiles
  int list_count_ = 0, list_first_ = 0;  // entries; place of the first one in list_, or its token
  const std::int32_t* list_ = nullptr;   // null: consecutive tokens
  bool list_represented_ = false;
};

}  // namespace tactic::cuda
