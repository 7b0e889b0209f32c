// The tokens that are attended without being listed: their part of the softmax normaliser. Included by .cu files only.
#pragma once

#include "select/cuda_query.h"
#include "select/cuda_sums.h"

namespace tactic::cuda {

// Tokens before the clustered range and behind it, numbered 0 .. count - 1.
struct FixedTokens {
  int first;  // tokens before the range
  int gap;    // tokens inside it
  int count;
  std::uint32_t faults;  // device_status
  __device__ int token(int i) const { return i < first ? i : i + gap; }
};

// What the index says of them: does not change during a step.
struct ClusteredRange {
  int first, last;
  bool ordered;
  __device__ ClusteredRange(const SelectTask& task, const Piece& piece)
      : ClusteredRange(task, task.index.range[2 * piece.sequence], task.index.range[2 * piece.sequence + 1],
                       task.index.clusters[piece.slot]) {}
  __device__ ClusteredRange(const SelectTask& task, int from, int to, int clusters) : first(from), last(to) {
    ordered = first >= 0 && first <= last && clusters >= 0 && clusters <= task.index.capacity;
  }
};

// None where something is wrong.
__device__ __forceinline__ FixedTokens fixed_tokens(const SelectTask& task, const ClusteredRange& range, int length) {
  const bool fits = length >= 0 && length <= task.kv.max_length && range.last <= length;
  const std::uint32_t faults = (fits ? 0 : device_status::bad_length) | (range.ordered ? 0 : device_status::bad_index);
  return faults == 0 ? FixedTokens{range.first, range.last - range.first, length - (range.last - range.first), 0}
                     : FixedTokens{0, 0, 0, faults};
}
// Before the predecessor has ended the length is a guess.
__device__ __forceinline__ FixedTokens fixed_tokens(const SelectTask& task, const Piece& piece, const ClusteredRange& range) {
  return fixed_tokens(task, range, *static_cast<const volatile std::int32_t*>(task.kv.lengths + piece.sequence));
}

// A tile of always-attended tokens goes to a warp that has the fewest tiles of centroids: from the last warp down.
__device__ __forceinline__ int first_fixed_tile(const Piece& piece) {
  return piece.rank + piece.pieces * (piece.warps - 1 - piece.warp);
}

// Null: the block id lies outside the cache.
__device__ __forceinline__ const std::byte* row_of(const SelectTask& task, int sequence, int head, int token) {
  const DeviceKv& kv = task.kv;
  const DeviceRows& rows = kv.k;
  const std::byte* base = rows.data + head * rows.head_stride;
  if (kv.block_table == nullptr) return base + sequence * rows.sequence_stride + token * rows.token_stride;
  const int place = task.by_block.divide(token);
  const int block = __ldcg(kv.block_table + static_cast<std::int64_t>(sequence) * kv.max_blocks + place);
  if (kv.block_count > 0 && (block < 0 || block >= kv.block_count)) return nullptr;
  return base + block * rows.block_stride + (token - place * kv.block_size) * rows.token_stride;
}

// Keys 16 tile .. 16 tile + 15, as far as there are. Each address is found by one lane, in code that lies there once.
template <typename Shape>
__device__ __forceinline__ void load_fixed(const SelectTask& task, const Piece& piece, const FixedTokens& fixed, int tile,
                                           RowTile<Shape::kBf16Chunks>& rows, bool (&valid)[2]) {
  const DeviceRows& k = task.kv.k;
  const int own = tile * kTileRows + piece.lane % kTileRows;
  const std::byte* row = own < fixed.count ? row_of(task, piece.sequence, piece.head, fixed.token(own)) : nullptr;
  if (row == nullptr && own < fixed.count) atomicOr(task.status + piece.sequence, device_status::bad_block);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(row), piece.lane / 4 + half * 8);
    valid[half] = address != 0;
    load_as_bf16(reinterpret_cast<const std::byte*>(address), k.type, k.dim, piece.lane, half == 0 ? rows.low : rows.high);
  }
}

template <typename Shape>
__device__ __forceinline__ void score_fixed(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                            const RowTile<Shape::kBf16Chunks>& rows, const bool (&valid)[2],
                                            RunningSum (&sums)[Shape::kQueryTiles][2]) {
  const QueryFragments<Shape, Shape::kBf16Chunks> query(shared.query16, Shape::kBf16Pitch, piece.lane);
  TileScores<Shape> scores;
  score_bf16(query, rows, piece.lane, scores);
  const float scale = task.query.scale * task.kv.k.scale * kLog2E;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) scores.v[i][k] *= scale;
  }
  if (task.query.softcap > 0) {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) scores.v[i][k] = cap_logit(task.query.softcap, scores.v[i][k]).x;
    }
  }
  if (!((piece.lane & 2) != 0 ? valid[1] : valid[0])) return;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) sums[i][k].add(scores.v[i][k]);
  }
}

// L2 fetches the keys of this warp's tiles, as far as they are known before the predecessor has ended: only a hint.
__device__ __forceinline__ void prefetch_fixed(const SelectTask& task, const Piece& piece, const FixedTokens& fixed) {
  const int bytes = task.kv.k.dim * static_cast<int>(size_of(task.kv.k.type));
#pragma unroll 1
  for (int tile = first_fixed_tile(piece); tile * kTileRows < fixed.count; tile += piece.pieces * piece.warps) {
    const int i = tile * kTileRows + piece.lane / 2;
    const std::byte* row = i < fixed.count ? row_of(task, piece.sequence, piece.head, fixed.token(i)) : nullptr;
#pragma unroll 1
    for (int at = piece.lane % 2 * 128; row != nullptr && at < bytes; at += 256) prefetch_l2(row + at);
  }
}

}  // namespace tactic::cuda
