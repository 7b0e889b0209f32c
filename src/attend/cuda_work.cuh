// Division of a step's work into equal stretches of tiles, one per thread block, and the way back from a tile to its tokens.
//
// A problem is a (sequence, KV head). Its tiles, in order: the pieces' token lists, sinks, recent tokens, the pieces' represented
// clusters; no tile spans two of these. All problems' tiles form one line, which is cut into equal stretches, one a thread block.
// A problem counts as if some more tiles came before its first: what it costs a block to go from one problem to the next. The cut
// depends on lengths and the number of blocks alone, so results are reproducible.
#pragma once

#include "attend/cuda_args.h"
#include "attend/cuda_ptx.cuh"
#include "core/cuda.h"

namespace tactic::cuda {

__device__ __forceinline__ int quotient(int n, SmallDivisor d) {
  return d.inverse == 0 ? n : static_cast<int>(__umulhi(static_cast<unsigned>(n), d.inverse));
}

// Not inlined: cold.
[[maybe_unused]] static __device__ __noinline__ void report(std::uint32_t* status, unsigned bits) { atomicOr(status, bits); }

__device__ __forceinline__ int tiles_of(int count, int tile) { return (count + tile - 1) / tile; }

// Always-attended tokens: 0 .. sinks - 1 and first .. first + recent - 1.
struct AlwaysWork {
  int sinks, first, recent;
  int length;
  int bad;
};
__device__ __forceinline__ AlwaysWork always_work(const AttendArgs& a, int sequence) {
  const int length = __ldcg(a.lengths + sequence);
  int first = 0, last = 0;
  if (a.range != nullptr) {
    const int2 range = __ldcg(reinterpret_cast<const int2*>(a.range) + sequence);
    first = range.x, last = range.y;
  }
  const bool bad = length < 0 || length > a.max_length || first < 0 || last < first || length < last;
  return {bad ? 0 : first, last, bad ? 0 : length - last, length, bad};
}

// Reads of a word that another block writes: seconds; then `select` has not run, or something else writes into lists or scratch,
// and what is read is out of range.
constexpr int kPatience = 1 << 22;

// What a (problem, piece) lists.
struct PieceWork {
  int tokens, first, represented;
  int bad;
};
__device__ __forceinline__ PieceWork piece_work(const AttendArgs& a, int entry) {
  int tokens, represented, first;
  if (a.lists.early_counts != nullptr) {
    const auto* at = reinterpret_cast<const int4*>(a.lists.early_counts) + entry;
    int4 told;
    int patience = kPatience;
    do {
      asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(told.x), "=r"(told.y), "=r"(told.z), "=r"(told.w)
                   : "l"(at)
                   : "memory");
    } while ((told.x == 0 || told.y == 0 || told.z == 0 || told.w == 0) && --patience > 0);
    tokens = told.x - 1, first = told.y - 1, represented = told.z - 1;
  } else {
    tokens = __ldcg(a.lists.token_count + entry);
    represented = a.lists.represented_count == nullptr ? 0 : __ldcg(a.lists.represented_count + entry);
    first = __ldcg(a.lists.token_first + entry);
  }
  const bool bad_tokens = tokens < 0 || first < 0 || first > a.lists.token_stride - tokens;
  const bool bad_represented = represented < 0 || represented > a.lists.represented_stride;
  return {bad_tokens ? 0 : tokens, first, bad_represented ? 0 : represented, bad_tokens || bad_represented};
}

// What a problem costs a block besides its tiles, in tiles, where stretches are long: folding and leaving its result, draining
// the warps. Found on an H200 (8 x 128K, 5% listed: attention 70.6 us with 0, 69.3 with 8, 69.2 with 12 and 16; 32 x
// 32K: 83.4, 81.3, 80.9 with 12); at most an eighth of a stretch.
constexpr int kMostChange = 12;

// A thread block's stretch of tiles. Places in the line count `change` more for each problem begun; the line is cut into
// gridDim.x stretches of places that differ by at most one.
struct Stretch {
  int begin, end;    // tiles
  int problem;       // of tile `begin`
  int size, larger;  // places of a stretch; the first `larger` blocks have one more
  int change;
};

// The thread block whose stretch holds a problem's first tile.
__device__ __forceinline__ int first_block(const Stretch& stretch, const int* first_tile, int problem) {
  const unsigned border = static_cast<unsigned>(stretch.larger) * (stretch.size + 1);
  const unsigned place = first_tile[problem] + (problem + 1) * stretch.change;
  if (place < border) return static_cast<int>(place / (stretch.size + 1));
  return static_cast<int>(stretch.larger + (place - border) / stretch.size);
}

// What all thread blocks know of the work, in shared memory. The last two are null when there is no room: then they are read
// again.
struct WorkTables {
  int* first_tile;     // [problems + 1] tiles before each problem
  PieceWork* pieces;   // [problems, pieces]
  AlwaysWork* always;  // [problems]
};

__device__ __forceinline__ WorkTables place_tables(const AttendArgs& a, float* memory) {
  WorkTables tables{reinterpret_cast<int*>(memory), nullptr, nullptr};
  if (!a.tables) return tables;
  tables.pieces = reinterpret_cast<PieceWork*>(memory);
  tables.always = reinterpret_cast<AlwaysWork*>(tables.pieces + a.problems * a.lists.pieces);
  tables.first_tile = reinterpret_cast<int*>(tables.always + a.problems);
  return tables;
}

// Fills the tables. All threads take part; ends in a barrier. A thread an (problem, piece): all loads of a round are independent,
// so that it costs one trip to the L2 cache.
__device__ __forceinline__ Stretch divide(const AttendArgs& a, const WorkTables& tables) {
  int* first_tile = tables.first_tile;
  __shared__ int warp_sum[kMaxWarps];
  const int pieces = max(a.lists.pieces, 1);
  const int entries = a.problems * pieces;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  int carry = 0;
#pragma unroll 1
  for (int base = 0; base < entries; base += threads) {
    const int entry = base + thread, at = min(entry, entries - 1);
    const int problem = quotient(at, a.by_pieces), sequence = quotient(problem, a.by_heads);
    const bool inside = entry < entries, leads = at == problem * pieces;
    PieceWork piece{};
    if (a.lists.pieces > 0) piece = piece_work(a, at);
    const AlwaysWork always = always_work(a, sequence);
    int tiles = tiles_of(piece.tokens, kTile) + tiles_of(piece.represented, kRepresentedTile);
    if (leads) tiles += tiles_of(always.sinks, kTile) + tiles_of(always.recent, kTile);
    if (!inside) tiles = 0;
    if (tables.always != nullptr && inside) {
      if (leads) tables.always[problem] = always;
      if (a.lists.pieces > 0) tables.pieces[entry] = piece;
    }
    if ((piece.bad || always.bad) && blockIdx.x == 0) {
      report(a.status + sequence, (always.bad ? device_status::bad_length : 0u) | (piece.bad ? device_status::bad_index : 0u));
    }
    int inclusive = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(kWarp, inclusive, step);
      if (lane >= step) inclusive += below;
    }
    if (base > 0) __syncthreads();  // the sums of the round before have been read
    if (lane == 31) warp_sum[warp] = inclusive;
    __syncthreads();
    const int of_warp = lane < threads / 32 ? warp_sum[lane] : 0;
    const int before = __reduce_add_sync(kWarp, lane < warp ? of_warp : 0);
    if (inside && leads) first_tile[problem] = carry + before + inclusive - tiles;
    carry += __reduce_add_sync(kWarp, of_warp);
  }
  if (thread == 0) first_tile[a.problems] = carry;
  Stretch stretch{};
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  stretch.change = min(kMostChange, carry / (8 * blocks));
  const int places = carry + a.problems * stretch.change;
  stretch.size = places / blocks;
  stretch.larger = places - stretch.size * blocks;
  const int begin = block * stretch.size + min(block, stretch.larger);
  const int end = begin + stretch.size + (block < stretch.larger ? 1 : 0);
  __syncthreads();
  // The last problem that begins at or before a place, by two rounds of a lane each for a share of the problems; the tile there.
  const int share = (a.problems + 31) / 32;
  const auto find = [&](int place, int& problem) {
    const auto begun = [&](int p) { return p < a.problems && first_tile[p] + p * stretch.change <= place; };
    const int from = (__popc(__ballot_sync(kWarp, begun(lane * share))) - 1) * share;
    int count = 0;
#pragma unroll 1
    for (int i = lane; i < share + lane; i += 32) count += __popc(__ballot_sync(kWarp, i < share && begun(from + i)));
    problem = from + count - 1;
    return min(first_tile[problem] + max(place - first_tile[problem] - (problem + 1) * stretch.change, 0), carry);
  };
  int last;
  stretch.begin = find(begin, stretch.problem);
  stretch.end = find(end, last);
  return stretch;
}

// One tile as a warp sees it.
struct Tile {
  int count = 0;  // entries; 0: no tile
  int first = 0;  // consecutive tokens: the first one; represented: place of the first in `represented`, over all pieces
  int sequence = 0;
  int limit = 0;           // entries are below
  std::uint32_t base = 0;  // tokens: begin of the (sequence, KV head) in K (lanes 0-15) or V, 16 bytes; else first column
  bool listed = false;     // entries are in a list
  bool represented = false;
};

// Finds tiles of ascending number. Lane l holds the l-th list of the current problem: pieces, then (lanes 30, 31) sinks and
// recent.
class TileFinder {
 public:
  __device__ TileFinder(const AttendArgs& a, const WorkTables& tables, int problem, int lane)
      : a_(a), tables_(tables), lane_(lane), problem_(problem - 1) {}

  // Tile `number` of the line, which must exist and not precede the one before. Its entries, token numbers or columns, are on
  // their way to `entries` [32] in shared memory if they are listed: entry lane % 16 or lane.
  __device__ __forceinline__ Tile find(int number, std::uint32_t entries) {
    if (number >= list_end_) seek(number);
    if (!listed_) {  // the lists themselves, and not only their lengths
      wait_for_predecessor();
      listed_ = true;
    }
    const int size = list_represented_ ? kRepresentedTile : kTile;
    const int mine = list_represented_ ? lane_ : lane_ % kTile;
    const int done = (number - list_begin_) * size, left = list_count_ - done;
    Tile tile;
    tile.count = min(left, size);
    tile.first = list_first_ + done;
    tile.sequence = sequence_;
    tile.limit = list_represented_ ? clusters_ : length_;
    tile.base = list_represented_ ? static_cast<std::uint32_t>(problem_) * a_.capacity : base_;
    tile.listed = list_ != nullptr;
    tile.represented = list_represented_;
    if (list_ != nullptr && mine < left) copy_4(entries + 4 * lane_, list_ + tile.first + mine, 4);
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
      clusters_ = min(a_.clusters[problem_], a_.capacity);
    }
  }

  __device__ __forceinline__ void enter(int number) {
    do {
      end_ = tables_.first_tile[++problem_ + 1];
    } while (number >= end_);
    begin_ = tables_.first_tile[problem_];
    sequence_ = quotient(problem_, a_.by_heads);
    const int kv_head = problem_ - sequence_ * a_.kv_heads;
    const RowSteps& steps = lane_ < kTile ? a_.k : a_.v;
    base_ = kv_head * steps.head + sequence_ * steps.sequence;
    const AlwaysWork always = tables_.always != nullptr ? tables_.always[problem_] : always_work(a_, sequence_);
    PieceWork piece{};
    if (lane_ < a_.lists.pieces) {
      const int entry = problem_ * a_.lists.pieces + lane_;
      piece = tables_.always != nullptr ? tables_.pieces[entry] : piece_work(a_, entry);
    }
    length_ = always.length;
    token_count_ = lane_ < kMaxPieces ? piece.tokens : lane_ == kMaxPieces ? always.sinks : always.recent;
    token_first_ = lane_ < kMaxPieces ? piece.first : lane_ == kMaxPieces ? 0 : always.first;
    represented_count_ = piece.represented;
    int tokens = tiles_of(token_count_, kTile), clusters = tiles_of(represented_count_, kRepresentedTile);
    token_start_ = -tokens;
    represented_start_ = -clusters;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int tokens_below = __shfl_up_sync(kWarp, tokens, step), clusters_below = __shfl_up_sync(kWarp, clusters, step);
      if (lane_ >= step) tokens += tokens_below, clusters += clusters_below;
    }
    token_tiles_ = __shfl_sync(kWarp, tokens, 31);
    token_start_ += tokens;
    represented_start_ += token_tiles_ + clusters;
  }

  const AttendArgs& a_;
  WorkTables tables_;
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
  bool listed_ = false;  // the lists are there
};

}  // namespace tactic::cuda
