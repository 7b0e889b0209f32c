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

// The L2 cache fetches the token numbers of a piece.
__device__ __forceinline__ void prefetch_ids(const SelectTask& task, const Piece& piece) {
  const DeviceIndex& index = task.index;
  const std::int32_t* begin = index.begin + static_cast<std::int64_t>(piece.slot) * (index.capacity + 64) + piece.first;
  if (piece.count == 0) return;
  const int first = __ldg(begin), end = __ldg(begin + piece.count);
  if (first < 0 || end > index.token_capacity) return;
  const std::int32_t* ids = index.tokens + static_cast<std::int64_t>(piece.slot) * index.token_capacity;
#pragma unroll 1
  for (int i = first + 32 * static_cast<int>(threadIdx.x); i < end; i += 32 * static_cast<int>(blockDim.x)) prefetch_l2(ids + i);
}

// The rows of a warp's next tile. Lanes 0 .. 15 know those of K, lanes 16 .. 31 those of V.
template <typename Shape>
class RowCopier {
  using Math = typename Shape::Math;

 public:
  __device__ RowCopier(const FusedTask& task, const Piece& piece, int length)
      : a_(task.attend), by_block_(task.select.by_block), lane_(piece.lane), sequence_(piece.sequence), length_(length) {
    const RowSteps& steps = piece.lane < kTile ? a_.k : a_.v;
    base_ = piece.head * steps.head + piece.sequence * steps.sequence;
  }

  // The tile that find() or copy_clusters() was last called for.
  __device__ unsigned valid() const { return valid_; }

  // Where the lane's token lies; exists: there is one.
  __device__ __forceinline__ void find(int token, bool exists) {
    bool valid = exists && static_cast<unsigned>(token) < static_cast<unsigned>(length_);
    if (exists && !valid) report(a_.status + sequence_, device_status::bad_index);
    row_ = base_;
    if (a_.block_table != nullptr && valid) {
      const int block = block_of(token);
      if (static_cast<unsigned>(block) >= static_cast<unsigned>(a_.block_count)) {
        report(a_.status + sequence_, device_status::bad_block);
        valid = false;
      }
      row_ += row_in_block(block, token);
    } else {
      row_ += static_cast<unsigned>(token) * token_step();
    }
    if (!valid) row_ = 0;
    valid_ = __ballot_sync(kWarp, valid) & 0xffffu;
  }
  __device__ __forceinline__ void copy_keys(std::uint32_t stage) const {
    copy<kTile, Math::k_chunks()>(stage, a_.k.data, row_, 0, valid_);
  }
  __device__ __forceinline__ void copy_values(std::uint32_t stage) const {
    copy<kTile, Math::v_chunks()>(stage + kTile * row_stride(Math::k_chunks()), a_.v.data, row_, kTile, valid_);
  }
  // The L2 cache fetches the lane's row: only a hint, as the token is a guess.
  __device__ __forceinline__ void prefetch(int token) const {
    if (static_cast<unsigned>(token) >= static_cast<unsigned>(a_.max_length)) return;
    unsigned row = base_;
    if (a_.block_table == nullptr) {
      row += static_cast<unsigned>(token) * token_step();
    } else {
      const int block = block_of(token);
      if (static_cast<unsigned>(block) >= static_cast<unsigned>(a_.block_count)) return;
      row += row_in_block(block, token);
    }
    const std::byte* at = (lane_ < kTile ? a_.k.data : a_.v.data) + static_cast<std::size_t>(row) * 16;
#pragma unroll
    for (int i = 0; i < Math::k_chunks() * 16; i += 128) prefetch_l2(at + i);
  }

  // A tile of represented columns: rows of mean V, their scales, log weights of `group` heads from shared memory.
  template <int kGroup>
  __device__ __forceinline__ void copy_clusters(std::uint32_t stage, unsigned first_column, int column, bool exists,
                                                const float* log_weight) {
    constexpr int kChunks = Math::mean_chunks();
    valid_ = __ballot_sync(kWarp, exists);
    const unsigned row = exists ? first_column + static_cast<unsigned>(column) : 0;
    copy<kRepresentedTile, kChunks>(stage, a_.mean_v, row * kChunks, 0, valid_);
    const std::uint32_t scales = stage + kRepresentedTile * row_stride(kChunks), weights = scales + kRepresentedTile * 4;
    copy_4(scales + lane_ * 4, a_.mean_v_scale + row, exists ? 4 : 0);
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g < a_.group && exists) {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(weights + (lane_ * a_.group + g) * 4), "f"(log_weight[column * kGroup + g])
                     : "memory");
      }
    }
  }

 private:
  __device__ __forceinline__ unsigned token_step() const { return lane_ < kTile ? a_.k.token : a_.v.token; }
  __device__ __forceinline__ int block_of(int token) const {
    return a_.block_table[static_cast<std::size_t>(sequence_) * a_.max_blocks + by_block_.divide(token)];
  }
  __device__ __forceinline__ unsigned row_in_block(int block, int token) const {
    const unsigned block_step = lane_ < kTile ? a_.k.block : a_.v.block;
    return static_cast<unsigned>(block) * block_step +
           static_cast<unsigned>(token - by_block_.divide(token) * a_.block_size) * token_step();
  }

  // kRows rows of kChunks 16-byte chunks; row r begins `row` of lane first_lane + r (in 16 bytes) behind data. Rows outside the
  // mask become zeros.
  template <int kRows, int kChunks>
  __device__ __forceinline__ void copy(std::uint32_t to, const std::byte* data, unsigned row, int first_lane,
                                       unsigned mask) const {
    static_assert(kRows * kChunks % 32 == 0);
#pragma unroll 4
    for (int step = 0; step < kRows * kChunks / 32; ++step) {
      const int i = step * 32 + lane_;
      const int r = i / kChunks, chunk = i % kChunks;
      const unsigned begin = __shfl_sync(kWarp, row, first_lane + r);
      copy_16(to + r * row_stride(kChunks) + chunk * 16, data + chunk * 16 + static_cast<std::size_t>(begin) * 16,
              static_cast<int>(mask >> r & 1) * 16);
    }
  }

  const AttendArgs& a_;
  const Divisor& by_block_;
  int lane_, sequence_, length_;
  std::uint32_t base_, row_ = 0;
  unsigned valid_ = 0;
};

}  // namespace tactic::cuda
