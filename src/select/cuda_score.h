// Logits of a piece's centroids and of its share of the always-attended tokens, for all heads of the group at once, on tensor
// cores. Included by .cu files only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "select/cuda_piece.h"

namespace tactic::cuda {

// Rows 4 lanes wide: lane 4 g + t holds 16 bytes of every 64 of rows g (low) and g + 8 (high). The order of a row's elements in
// the mma is then not that of memory, but the same for both sides.
template <int Chunks>
struct RowTile {
  uint4 low[Chunks];
  uint4 high[Chunks];
};

__device__ __forceinline__ std::uint32_t pack_bf16(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

// 8 elements from `element` on of a row that is not bf16, in bf16. Not inlined: code that is not run should not be fetched
// either.
__device__ __noinline__ inline uint4 convert_to_bf16(const std::byte* row, DeviceType type, int element) {
  float v[8];
  if (type == DeviceType::f16) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + element * 2);
    const __half2* pairs = reinterpret_cast<const __half2*>(&bits);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = __half22float2(pairs[i]);
      v[2 * i] = f.x;
      v[2 * i + 1] = f.y;
    }
  } else if (type == DeviceType::fp8_e4m3) {
    const uint2 bits = *reinterpret_cast<const uint2*>(row + element);
    const auto* pairs = reinterpret_cast<const __nv_fp8x2_storage_t*>(&bits);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pairs[i], __NV_E4M3)));
      v[2 * i] = f.x;
      v[2 * i + 1] = f.y;
    }
  } else {
    const float4 a = *reinterpret_cast<const float4*>(row + element * 4);
    const float4 b = *(reinterpret_cast<const float4*>(row + element * 4) + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }
  return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// A lane's chunks of a row of the caller's, in bf16; zero beyond `dim`, and all zero without a row.
template <int Chunks>
__device__ __forceinline__ void load_as_bf16(const std::byte* row, DeviceType type, int dim, int lane, uint4 (&into)[Chunks]) {
  const int first = lane % 4 * 8;
  if (type == DeviceType::bf16) {
#pragma unroll
    for (int j = 0; j < Chunks; ++j) {
      const bool inside = row != nullptr && j * 32 + first < dim;
      into[j] = inside ? *reinterpret_cast<const uint4*>(row + (j * 32 + first) * 2) : make_uint4(0, 0, 0, 0);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < Chunks; ++j) {
    const bool inside = row != nullptr && j * 32 + first < dim;
    into[j] = inside ? convert_to_bf16(row, type, j * 32 + first) : make_uint4(0, 0, 0, 0);
  }
}

__device__ __forceinline__ float load_element(const void* data, DeviceType type, std::int64_t i) {
  if (type == DeviceType::f32) return static_cast<const float*>(data)[i];
  if (type == DeviceType::f16) return __half2float(static_cast<const __half*>(data)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}

// kEach elements of a lane; unaligned or odd ends do not occur: head_dim is a multiple of 16.
template <int Each>
__device__ __forceinline__ void load_query(const std::byte* q, DeviceType type, float (&v)[Each]) {
#pragma unroll
  for (int i = 0; i < Each; i += 2) {
    if (type == DeviceType::f32) {
      const float2 f = *reinterpret_cast<const float2*>(q + i * 4);
      v[i] = f.x, v[i + 1] = f.y;
    } else {
      const std::uint32_t bits = *reinterpret_cast<const std::uint32_t*>(q + i * 2);
      const float2 f = type == DeviceType::f16 ? __half22float2(*reinterpret_cast<const __half2*>(&bits))
                                               : __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
      v[i] = f.x, v[i + 1] = f.y;
    }
  }
}

// One warp: q of head `member` into shared memory, as f32, as two bf16 parts and as two int8 parts of the largest element.
template <typename Shape>
__device__ __forceinline__ void stage_query(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                            int member) {
  constexpr int kEach = Shape::kDim / 32;
  const int dim = task.query.shape.head_dim;
  const int group = task.query.shape.group();
  const auto* q = static_cast<const std::byte*>(task.query.q) + piece.sequence * task.query.sequence_stride;
  const int element = piece.lane * kEach;
  const int at = (piece.head * group + member) * dim + element;
  float v[kEach] = {};
  if (member < group && element < dim) load_query(q + at * static_cast<int>(size_of(task.query.type)), task.query.type, v);
  float largest = 0;
  bool sound = true;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    largest = fmaxf(largest, fabsf(v[i]));
    sound = sound && fabsf(v[i]) <= 3.4e38f;
  }
  // positive floats order like their bits
  const float unit = fmaxf(__uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest))), 1e-30f) * (1.0f / 127.0f);
  const float inverse = __fdividef(1.0f, unit);
  const int column = member / 4 * 8 + member % 4;
  float* row = shared.query + member * Shape::kDim + element;
  std::byte* row16 = shared.query16 + column * Shape::kBf16Pitch + element * 2;
#pragma unroll
  for (int i = 0; i < kEach; i += 2) {
    *reinterpret_cast<float2*>(row + i) = make_float2(v[i], v[i + 1]);
    const std::uint32_t lead = pack_bf16(v[i], v[i + 1]);
    const float2 value = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&lead));
    *reinterpret_cast<std::uint32_t*>(row16 + i * 2) = lead;
    *reinterpret_cast<std::uint32_t*>(row16 + 4 * Shape::kBf16Pitch + i * 2) = pack_bf16(v[i] - value.x, v[i + 1] - value.y);
    if constexpr (Shape::kInt8) {
      std::byte* row8 = shared.query8 + column * Shape::kInt8Pitch + element + i;
      const float a = rintf(v[i] * inverse), b = rintf(v[i + 1] * inverse);
      *reinterpret_cast<char2*>(row8) = make_char2(static_cast<signed char>(a), static_cast<signed char>(b));
      const float rest_a = rintf((v[i] * inverse - a) * 128), rest_b = rintf((v[i + 1] * inverse - b) * 128);
      *reinterpret_cast<char2*>(row8 + 4 * Shape::kInt8Pitch) =
          make_char2(static_cast<signed char>(rest_a), static_cast<signed char>(rest_b));
    }
  }
  const bool all_sound = __all_sync(~0u, sound);
  if (piece.lane != 0) return;
  // int8 would turn a NaN into a number
  shared.query_scale[member] = all_sound ? unit : __int_as_float(0x7fffffff);
  if (!all_sound && member < group) atomicOr(task.status + piece.sequence, device_status::non_finite);
}

// What lane 4 g + t keeps of a scored tile: row g + 8 * (t / 2), heads 4 i + 2 * (t % 2) and the next, i = 0 .. kQueryTiles - 1.
template <typename Shape>
struct TileScores {
  float v[Shape::kQueryTiles][2];
};

// Leading and remainder columns of the accumulators brought together.
template <typename Shape, typename Value>
__device__ __forceinline__ void join_parts(const Value (&acc)[Shape::kQueryTiles][4], float remainder_unit, int lane,
                                           TileScores<Shape>& scores) {
  const bool upper = (lane & 2) == 0;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Value other = __shfl_xor_sync(~0u, upper ? acc[i][2 + k] : acc[i][k], 2);
      const Value lead = upper ? acc[i][k] : other;
      const Value rest = upper ? other : acc[i][2 + k];
      scores.v[i][k] = static_cast<float>(lead) + static_cast<float>(rest) * remainder_unit;
    }
  }
}

// q's side of the mma, for this lane. Where it is small it is held in registers, else read from shared memory tile by tile.
template <typename Shape, int Chunks>
struct QueryFragments {
  static constexpr bool kHeld = Shape::kQueryTiles * Chunks <= 4;
  const std::byte* at;
  int pitch;
  uint4 held[kHeld ? Shape::kQueryTiles : 1][kHeld ? Chunks : 1];

  __device__ QueryFragments(const std::byte* rows, int row_pitch_of, int lane)
      : at(rows + lane / 4 * row_pitch_of + lane % 4 * 16), pitch(row_pitch_of) {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
        for (int j = 0; j < Chunks; ++j) held[i][j] = *reinterpret_cast<const uint4*>(at + i * 8 * pitch + j * 64);
      }
    }
  }
  __device__ __forceinline__ uint4 get(int i, int j) const {
    if constexpr (kHeld) return held[i][j];
    return *reinterpret_cast<const uint4*>(at + i * 8 * pitch + j * 64);
  }
};

template <typename Shape, int Chunks>
__device__ __forceinline__ void score_bf16(const QueryFragments<Shape, Chunks>& query, const RowTile<Chunks>& rows, int lane,
                                           TileScores<Shape>& scores) {
  // Two chains, since each mma waits for the one before on the same accumulators.
  float acc[Shape::kQueryTiles][4] = {}, other[Shape::kQueryTiles][4] = {};
#pragma unroll
  for (int j = 0; j < Chunks; ++j) {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const uint4 b = query.get(i, j);
      mma_bf16(acc[i], rows.low[j].x, rows.high[j].x, rows.low[j].y, rows.high[j].y, b.x, b.y);
      mma_bf16(other[i], rows.low[j].z, rows.high[j].z, rows.low[j].w, rows.high[j].w, b.z, b.w);
    }
  }
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) acc[i][k] += other[i][k];
  }
  join_parts<Shape>(acc, 1.0f, lane, scores);
}

template <typename Shape, int Chunks>
__device__ __forceinline__ void score_int8(const QueryFragments<Shape, Chunks>& query, const RowTile<Chunks>& rows, int lane,
                                           TileScores<Shape>& scores) {
  int acc[Shape::kQueryTiles][4] = {};
#pragma unroll
  for (int j = 0; j < Chunks; ++j) {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const uint4 b = query.get(i, j);
      mma_int8(acc[i], rows.low[j].x, rows.high[j].x, rows.low[j].y, rows.high[j].y, b.x, b.y);
      mma_int8(acc[i], rows.low[j].z, rows.high[j].z, rows.low[j].w, rows.high[j].w, b.z, b.w);
    }
  }
  join_parts<Shape>(acc, 1.0f / 128.0f, lane, scores);
}

// Base-2 logit.
__device__ __forceinline__ float finish_logit(const DeviceQuery& query, float dot) {
  const float logit = dot * query.scale;
  if (query.softcap <= 0) return logit * kLog2E;
  // tanh x = 1 - 2 / (exp(2 x) + 1)
  const float power = exp2_fast(logit * (2 * kLog2E / query.softcap));
  return kLog2E * query.softcap * (1 - __fdividef(2.0f, power + 1));
}

// ---- centroids -------------------------------------------------------------------------------------------------------

template <typename Shape>
__device__ __forceinline__ void load_centroids(const SelectTask& task, const Piece& piece, int tile,
                                               RowTile<Shape::kChunks>& rows) {
  const int dim = task.query.shape.head_dim;
  const int bytes = Shape::kInt8 ? dim : dim * 2;
  const auto* data = Shape::kInt8 ? reinterpret_cast<const std::byte*>(task.index.centroid8)
                                  : reinterpret_cast<const std::byte*>(task.index.centroid16);
  const std::int64_t row = static_cast<std::int64_t>(piece.slot) * task.index.capacity + piece.first + tile * kTileRows;
  const std::byte* at = data + (row + piece.lane / 4) * bytes;
  const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int j = 0; j < Shape::kChunks; ++j) {
    const int place = j * 64 + piece.lane % 4 * 16;
    const bool inside = place < bytes;
    rows.low[j] = inside ? load_once(at + place) : zero;
    rows.high[j] = inside ? load_once(at + 8 * bytes + place) : zero;
  }
}

// Log-sum-exp of values that come one by one, base 2, without a branch on every new maximum: the reference moves only when a
// value outgrows it by far.
struct RunningSum {
  float top = kLowest;
  float sum = 0;
  __device__ __forceinline__ void add(float x) {
    constexpr float kSlack = 32;  // 2^32 times the number of values is far from overflow
    if (x > top + kSlack) {
      sum *= exp2_fast(top - x);
      top = x;
    }
    sum += exp2_fast(x - top);
  }
};

// Half variances of all parts and heads per unit of spread, from the rows' parts of q' shape q.
template <typename Shape>
__device__ __forceinline__ void sum_half_variances(const SelectTask& task, const Piece& piece,
                                                   const SelectShared<Shape>& shared) {
  const float factor = 0.5f * task.query.scale * task.query.scale;
  for (int i = static_cast<int>(threadIdx.x); i < piece.parts * Shape::kGroup; i += static_cast<int>(blockDim.x)) {
    float form = 0;
    if (task.spread) {
#pragma unroll 4
      for (int t = 0; t < task.query.shape.head_dim / kTileRows; ++t) form += shared.form[i * Shape::kRowTiles + t];
    }
    shared.half[i] = form < 0 ? 0.0f : form * factor;  // rounding; a NaN stays
  }
}

__device__ __forceinline__ int part_of(const std::int32_t* part_end, int parts, int column) {
  int part = 0;
  while (part + 1 < parts && column >= part_end[part]) ++part;
  return part;
}

// With a softcap the logits scatter less, by its slope at the centroid's logit.
__device__ __forceinline__ float capped_variance(const SelectTask& task, float half_variance_of_column, float logit) {
  if (task.query.softcap <= 0) return half_variance_of_column;
  const float ratio = logit * kLn2 / task.query.softcap;
  const float slope = 1 - ratio * ratio;
  return half_variance_of_column * slope * slope;
}

// Scores tiles of centroids into shared.mass; one lane's columns of all of them share its sums.
template <typename Shape>
class CentroidScorer {
 public:
  __device__ CentroidScorer(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared)
      : task_(task),
        piece_(piece),
        shared_(shared),
        query_(Shape::kInt8 ? shared.query8 : shared.query16, Shape::kInt8 ? Shape::kInt8Pitch : Shape::kBf16Pitch, piece.lane) {
    load_part(0);
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const float2 unit = *reinterpret_cast<const float2*>(shared.query_scale + i * 4 + pair());
      unit_[i][0] = Shape::kInt8 ? unit.x : 1.0f;
      unit_[i][1] = Shape::kInt8 ? unit.y : 1.0f;
    }
  }

  __device__ __forceinline__ void score(int tile, const RowTile<Shape::kChunks>& rows,
                                        RunningSum (&sums)[Shape::kQueryTiles][2]) {
    TileScores<Shape> scores;
    if constexpr (Shape::kInt8) {
      score_int8(query_, rows, piece_.lane, scores);
    } else {
      score_bf16(query_, rows, piece_.lane, scores);
    }
    const int column = tile * kTileRows + piece_.lane / 4 + (piece_.lane & 2) * 4;
    if (piece_.parts > 1) {
      const int part = part_of(shared_.part_end, piece_.parts, piece_.first + column);
      if (part != part_) load_part(part);
    }
    const float scale = Shape::kInt8 ? shared_.scale[column] : 1.0f;
    const float spread = shared_.spread[column];
    const float log_size = shared_.log_size[column];
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      float2 mass;
      float* both = &mass.x;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float logit = finish_logit(task_.query, scores.v[i][k] * (scale * unit_[i][k]));
        const float x = fmaf(capped_variance(task_, half_[i][k] * spread, logit), kLog2E, logit + log_size);
        if (column < piece_.count) sums[i][k].add(x);
        both[k] = fmaxf(x, kLowest);  // drops a NaN: the sum remembers it
        if (task_.query.softcap > 0) shared_.logit[column * Shape::kGroup + i * 4 + pair() + k] = logit;
      }
      *reinterpret_cast<float2*>(shared_.mass + column * Shape::kGroup + i * 4 + pair()) = mass;
    }
  }

 private:
  __device__ __forceinline__ int pair() const { return piece_.lane % 2 * 2; }
  __device__ void load_part(int part) {
    part_ = part;
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) half_[i][k] = shared_.half[part * Shape::kGroup + i * 4 + pair() + k];
    }
  }

  const SelectTask& task_;
  const Piece& piece_;
  const SelectShared<Shape>& shared_;
  QueryFragments<Shape, Shape::kChunks> query_;
  float half_[Shape::kQueryTiles][2];
  float unit_[Shape::kQueryTiles][2];
  int part_ = 0;
};

// ---- always-attended tokens ------------------------------------------------------------------------------------------

// Tokens before the clustered range and behind it, numbered 0 .. count - 1.
struct FixedTokens {
  int first;  // tokens before the range
  int gap;    // tokens inside it
  int count;
  __device__ int token(int i) const { return i < first ? i : i + gap; }
};

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

template <typename Shape>
__device__ __forceinline__ void load_fixed(const SelectTask& task, const Piece& piece, const FixedTokens& fixed, int tile,
                                           RowTile<Shape::kBf16Chunks>& rows, bool (&valid)[2]) {
  const DeviceRows& k = task.kv.k;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = tile * kTileRows + piece.lane / 4 + half * 8;
    const std::byte* row = i < fixed.count ? row_of(task, piece.sequence, piece.head, fixed.token(i)) : nullptr;
    valid[half] = row != nullptr;
    if (!valid[half] && i < fixed.count) atomicOr(task.status + piece.sequence, device_status::bad_block);
    load_as_bf16(row, k.type, k.dim, piece.lane, half == 0 ? rows.low : rows.high);
  }
}

template <typename Shape>
__device__ __forceinline__ void score_fixed(const SelectTask& task, const Piece& piece,
                                            const QueryFragments<Shape, Shape::kBf16Chunks>& query,
                                            const RowTile<Shape::kBf16Chunks>& rows, const bool (&valid)[2],
                                            RunningSum (&sums)[Shape::kQueryTiles][2]) {
  TileScores<Shape> scores;
  score_bf16(query, rows, piece.lane, scores);
  if (!valid[(piece.lane & 2) / 2]) return;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) sums[i][k].add(finish_logit(task.query, scores.v[i][k] * task.kv.k.scale));
  }
}

// L2 fetches the keys of a tile, as far as they are known before the predecessor has ended: only a hint.
__device__ __forceinline__ void prefetch_fixed(const SelectTask& task, const Piece& piece, const FixedTokens& fixed, int tile) {
  const int i = tile * kTileRows + piece.lane / 2;
  if (i >= fixed.count) return;
  const std::byte* row = row_of(task, piece.sequence, piece.head, fixed.token(i));
  if (row == nullptr) return;
  const int bytes = task.kv.k.dim * static_cast<int>(size_of(task.kv.k.type));
  for (int at = piece.lane % 2 * 128; at < bytes; at += 256) prefetch_l2(row + at);
}

// ---- half variances --------------------------------------------------------------------------------------------------

// 16 rows of a part's covariance.
template <typename Shape>
__device__ __forceinline__ void load_shape(const SelectTask& task, const Piece& piece, int part, int row_tile,
                                           RowTile<Shape::kBf16Chunks>& rows) {
  const int dim = task.query.shape.head_dim;
  const auto* shape = task.index.shape + (static_cast<std::int64_t>(piece.slot) * task.index.part_capacity + part) * dim * dim +
                      (row_tile * kTileRows + piece.lane / 4) * dim;
#pragma unroll
  for (int j = 0; j < Shape::kBf16Chunks; ++j) {
    const int element = j * 32 + piece.lane % 4 * 8;
    const bool inside = element < dim;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    rows.low[j] = inside ? __ldg(reinterpret_cast<const uint4*>(shape + element)) : zero;
    rows.high[j] = inside ? __ldg(reinterpret_cast<const uint4*>(shape + 8 * dim + element)) : zero;
  }
}

// q' shape q of every head over these rows, into `form`.
template <typename Shape>
__device__ __forceinline__ void sum_form(const Piece& piece, const SelectShared<Shape>& shared, int part, int row_tile,
                                         const RowTile<Shape::kBf16Chunks>& rows) {
  const QueryFragments<Shape, Shape::kBf16Chunks> query(shared.query16, Shape::kBf16Pitch, piece.lane);
  TileScores<Shape> scores;
  score_bf16(query, rows, piece.lane, scores);
  const int element = row_tile * kTileRows + piece.lane / 4 + (piece.lane & 2) * 4;
#pragma unroll
  for (int i = 0; i < Shape::kQueryTiles; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int member = i * 4 + piece.lane % 2 * 2 + k;
      float sum = scores.v[i][k] * shared.query[member * Shape::kDim + element];
#pragma unroll
      for (int o = 16; o > 1; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
      if (piece.lane < 2) shared.form[(part * Shape::kGroup + member) * Shape::kRowTiles + row_tile] = sum;
    }
  }
}

}  // namespace tactic::cuda
