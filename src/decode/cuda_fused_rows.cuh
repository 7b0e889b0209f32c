// Tiles of a block of the fused step: which tokens they hold, and their rows' way into a warp's stage in shared memory.
#pragma once

#include "decode/cuda_fused_memory.cuh"

namespace tactic::cuda {

// The head's chosen columns, as all its blocks have sent them to each other: so each may attend to an equal share of their
// tokens.
template <typename Shape>
struct ChosenTokens {
  const ChosenEntry* entries = nullptr;
  int stride = 0;   // of a block in `entries`
  int first = 0;    // lane l: tokens of the blocks before block l
  int columns = 0;  // lane l: chosen by block l
  int count = 0;    // tokens

  // For all blocks.
  __device__ __forceinline__ void wait(const FusedTask& task, const Piece& piece, const FusedShared<Shape>& shared) {
    entries = shared.entries;
    stride = task.select.columns;
    wait_for_bytes(shared.headed);
    const ChosenHeader header = piece.lane < piece.pieces ? shared.headers[piece.lane] : ChosenHeader{};
    const bool sound = static_cast<unsigned>(header.tokens) <= static_cast<unsigned>(task.select.index.token_capacity);
    columns = header.columns;
    if (piece.warp == 0) {
      const int all = __reduce_add_sync(kWarp, columns);
      if (piece.lane == 0) expect_bytes(shared.listed, static_cast<std::uint32_t>(all * sizeof(ChosenEntry)));
      if (!sound && piece.lane == piece.rank) report(task.select.status + piece.sequence, device_status::bad_index);
    }
    int inclusive = sound ? header.tokens : 0;
#pragma unroll
    for (int o = 1; o < kMostFusedPieces; o *= 2) {
      const int below = __shfl_up_sync(kWarp, inclusive, o);
      if (piece.lane >= o) inclusive += below;
    }
    first = inclusive - (sound ? header.tokens : 0);
    count = __shfl_sync(kWarp, inclusive, kMostFusedPieces - 1);
    if (piece.lane >= piece.pieces) first = 0x7fffffff;
    wait_for_bytes(shared.listed);
  }

  // Where in the index the head's tokens `places` are; all lanes take part, each with its own. Several at a time, since each is a
  // chain of reads.
  template <int kEach>
  __device__ __forceinline__ void find(const int (&places)[kEach], int (&sources)[kEach]) const {
    int block[kEach], place[kEach], left[kEach];
    const ChosenEntry* entry[kEach];
#pragma unroll
    for (int k = 0; k < kEach; ++k) block[k] = -1;
#pragma unroll
    for (int b = 0; b < kMostFusedPieces; ++b) {
      const int begin = __shfl_sync(kWarp, first, b);
#pragma unroll
      for (int k = 0; k < kEach; ++k) block[k] += begin <= places[k] ? 1 : 0;
    }
    int most = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      block[k] = max(block[k], 0);
      place[k] = places[k] - __shfl_sync(kWarp, first, block[k]);
      left[k] = __shfl_sync(kWarp, columns, block[k]);
      entry[k] = entries + block[k] * stride;
      most = max(most, left[k]);
    }
#pragma unroll 1
    for (; most > 1; most -= most / 2) {  // the last place that is not behind the token's
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const int half = left[k] / 2;
        if (entry[k][half].place <= place[k]) entry[k] += half;
        left[k] -= half;
      }
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) sources[k] = entry[k]->source + place[k];
  }
};

// To the other blocks of the head: a chosen column, a header. In the order of the block's list.
template <typename Shape>
struct ChosenSender {
  const FusedShared<Shape>& shared;
  int rank, pieces, stride;

  __device__ __forceinline__ void set(int i, int place, int begin) const {
    auto* to = reinterpret_cast<float*>(shared.entries + rank * stride + i);
#pragma unroll 1
    for (int block = 0; block < pieces; ++block)
      send_to_block(to, shared.listed, block, make_float2(__int_as_float(place), __int_as_float(begin - place)));
  }
  __device__ __forceinline__ void set_header(int block, int tokens, int columns) const {
    send_to_block(reinterpret_cast<float*>(shared.headers + rank), shared.headed, block,
                  make_float4(__int_as_float(tokens), __int_as_float(columns), 0, 0));
  }
};

// A lane's elements of its warp's query head as they lie in memory: all loads of a kernel's beginning are to go out together.
template <typename Shape>
struct RawQuery {
  static constexpr int kEach = LaneQuery<typename Shape::Select>::kEach;
  static constexpr int kPitch = Shape::Math::kDim * 2 + 16;  // of a row in shared memory
  static_assert(Shape::Math::kDim == Shape::Select::kDim);
  std::uint32_t words[kEach / 2] = {};

  __device__ __forceinline__ RawQuery(const SelectTask& task, const Piece& piece, const QueryRows& q) {
    if (piece.warp >= task.group) return;
    const std::byte* at = q.data + (piece.warp * Shape::Select::kDim + piece.lane * kEach) * 2;
    if constexpr (kEach == 4) {
      const uint2 both = *reinterpret_cast<const uint2*>(at);
      words[0] = both.x, words[1] = both.y;
    } else {
      words[0] = *reinterpret_cast<const std::uint32_t*>(at);
    }
  }
  __device__ __forceinline__ void stage(const SelectTask& task, const Piece& piece, const FusedShared<Shape>& shared) const {
    LaneQuery<typename Shape::Select> of_lane;
#pragma unroll
    for (int i = 0; i < kEach / 2; ++i) {
      const float2 pair = unpack<typename Shape::Math::Half>(words[i]);
      of_lane.v[2 * i] = pair.x, of_lane.v[2 * i + 1] = pair.y;
    }
    store_words(shared.raw_query + piece.warp * kPitch + piece.lane * kEach * 2, words);
    stage_query(task, piece, shared.select, of_lane, piece.warp);
  }
};

// Where a token's rows lie, in 16 bytes.
struct RowPair {
  std::uint32_t k, v;
};

// The rows of a warp's tiles: found several tiles at a time, copied tile by tile.
template <typename Shape>
class RowCopier {
  using Math = typename Shape::Math;
  static constexpr int kChunks = Math::k_chunks();
  static constexpr int kLanes = kChunks;          // a row
  static constexpr int kAtOnce = 32 / kLanes;     // rows
  static constexpr int kSteps = kTile / kAtOnce;  // a tile of K or V
  static_assert(kChunks == Math::v_chunks() && kSteps % 4 == 0);

 public:
  __device__ RowCopier(const FusedTask& task, const Piece& piece, int length)
      : a_(task.attend), by_block_(task.select.by_block), lane_(piece.lane), sequence_(piece.sequence), length_(length) {
    base_ = {piece.head * a_.k.head + piece.sequence * a_.k.sequence, piece.head * a_.v.head + piece.sequence * a_.v.sequence};
    asm volatile("mov.b64 %0, %1;" : "=l"(k_chunk_) : "l"(a_.k.data + piece.lane % kLanes * 16));
    asm volatile("mov.b64 %0, %1;" : "=l"(v_chunk_) : "l"(a_.v.data + piece.lane % kLanes * 16));
  }

  // Of the lane's token of one of two tiles, the upper lanes' is the second; exists: there is one. Tells which lanes have rows.
  // The others get a row of the same tile, so that what is copied is finite where what is attended is.
  __device__ __forceinline__ RowPair find(int token, bool exists, unsigned& mask) const {
    bool valid = exists && static_cast<unsigned>(token) < static_cast<unsigned>(length_);
    if (exists && !valid) report(a_.status + sequence_, device_status::bad_index);
    RowPair rows = base_;
    if (a_.block_table != nullptr && valid) {
      const int block = block_of(token);
      if (static_cast<unsigned>(block) >= static_cast<unsigned>(a_.block_count)) {
        report(a_.status + sequence_, device_status::bad_block);
        valid = false;
      }
      const auto inside = static_cast<unsigned>(token - by_block_.divide(token) * a_.block_size);
      rows.k += static_cast<unsigned>(block) * a_.k.block + inside * a_.k.token;
      rows.v += static_cast<unsigned>(block) * a_.v.block + inside * a_.v.token;
    } else {
      rows.k += static_cast<unsigned>(token) * a_.k.token;
      rows.v += static_cast<unsigned>(token) * a_.v.token;
    }
    if (!valid) rows = {0, 0};
    mask = __ballot_sync(kWarp, valid);
    if (mask != kWarp) {
      const unsigned of_tile = mask >> (lane_ & kTile) & 0xffffu;
      const int from = valid || of_tile == 0 ? lane_ : (lane_ & kTile) + __ffs(static_cast<int>(of_tile)) - 1;
      rows = {__shfl_sync(kWarp, rows.k, from), __shfl_sync(kWarp, rows.v, from)};
    }
    return rows;
  }
  // To a tile's place in shared memory, [2, kTile]: rows that a lane copies lie side by side.
  __device__ __forceinline__ void keep(std::uint32_t* of_tile, RowPair rows) const {
    const int row = lane_ % kTile, at = row % kAtOnce * kSteps + row / kAtOnce;
    of_tile[at] = rows.k;
    of_tile[kTile + at] = rows.v;
  }
  __device__ __forceinline__ void copy_keys(std::uint32_t stage, const std::uint32_t* of_tile) const {
    copy_rows(stage, k_chunk_, of_tile);
  }
  __device__ __forceinline__ void copy_values(std::uint32_t stage, const std::uint32_t* of_tile) const {
    copy_rows(stage + kTile * row_stride(kChunks), v_chunk_, of_tile + kTile);
  }
  // The L2 cache fetches the lane's row, of K for the lower lanes: only a hint, as the token is a guess.
  __device__ __forceinline__ void prefetch(int token) const {
    if (static_cast<unsigned>(token) >= static_cast<unsigned>(a_.max_length)) return;
    const RowSteps& steps = lane_ < kTile ? a_.k : a_.v;
    unsigned row = lane_ < kTile ? base_.k : base_.v;
    if (a_.block_table == nullptr) {
      row += static_cast<unsigned>(token) * steps.token;
    } else {
      const int block = block_of(token);
      if (static_cast<unsigned>(block) >= static_cast<unsigned>(a_.block_count)) return;
      row += static_cast<unsigned>(block) * steps.block +
             static_cast<unsigned>(token - by_block_.divide(token) * a_.block_size) * steps.token;
    }
    const std::byte* at = steps.data + static_cast<std::size_t>(row) * 16;
#pragma unroll
    for (int i = 0; i < kChunks * 16; i += 128) prefetch_l2(at + i);
  }

  // A tile of represented columns: rows of mean V, their scales, log weights of `group` heads from shared memory. Tells which
  // exist.
  template <int kGroup>
  __device__ __forceinline__ unsigned copy_clusters(std::uint32_t stage, unsigned first_column, int column, bool exists,
                                                    const float* log_weight) const {
    constexpr int kMeanChunks = Math::mean_chunks();
    const unsigned mask = __ballot_sync(kWarp, exists), row = exists ? first_column + static_cast<unsigned>(column) : 0;
#pragma unroll 4
    for (int step = 0; step < kRepresentedTile * kMeanChunks / 32; ++step) {
      const int i = step * 32 + lane_, r = i / kMeanChunks, chunk = i % kMeanChunks;
      const unsigned begin = __shfl_sync(kWarp, row * kMeanChunks, r);
      copy_16(stage + r * row_stride(kMeanChunks) + chunk * 16, a_.mean_v + chunk * 16 + static_cast<std::size_t>(begin) * 16,
              static_cast<int>(mask >> r & 1) * 16);
    }
    const std::uint32_t scales = stage + kRepresentedTile * row_stride(kMeanChunks), weights = scales + kRepresentedTile * 4;
    copy_4(scales + lane_ * 4, a_.mean_v_scale + row, exists ? 4 : 0);
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g < a_.group && exists) {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(weights + (lane_ * a_.group + g) * 4), "f"(log_weight[column * kGroup + g])
                     : "memory");
      }
    }
    return mask;
  }

 private:
  __device__ __forceinline__ int block_of(int token) const {
    return a_.block_table[static_cast<std::size_t>(sequence_) * a_.max_blocks + by_block_.divide(token)];
  }
  // By hand: the compiler would add base and chunk one after the other for every row.
  static __device__ __forceinline__ const std::byte* row_at(const std::byte* chunk, std::uint32_t row) {
    const std::byte* at;
    asm("mad.wide.u32 %0, %1, 16, %2;" : "=l"(at) : "r"(row), "l"(chunk));
    return at;
  }
  __device__ __forceinline__ void copy_rows(std::uint32_t to, const std::byte* chunk, const std::uint32_t* rows) const {
    to += lane_ / kLanes * row_stride(kChunks) + lane_ % kLanes * 16;
    uint4 of_lane[kSteps / 4];
#pragma unroll
    for (int i = 0; i < kSteps / 4; ++i) of_lane[i] = reinterpret_cast<const uint4*>(rows + lane_ / kLanes * kSteps)[i];
#pragma unroll
    for (int i = 0; i < kSteps / 4; ++i) {
      const std::uint32_t four[4] = {of_lane[i].x, of_lane[i].y, of_lane[i].z, of_lane[i].w};
#pragma unroll
      for (int k = 0; k < 4; ++k) copy_16(to + (4 * i + k) * kAtOnce * row_stride(kChunks), row_at(chunk, four[k]), 16);
    }
  }

  const AttendArgs& a_;
  const Divisor& by_block_;
  int lane_, sequence_, length_;
  RowPair base_;
  const std::byte *k_chunk_, *v_chunk_;  // of row 0, what the lane copies
};

}  // namespace tactic::cuda
