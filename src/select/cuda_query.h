// q of a group against 16 rows at a time on tensor cores: q staged in shared memory, rows of any type, dot products of all heads
// at once. Included by .cu files only.
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

template <int Chunks>
struct RowChunks {
  uint4 v[Chunks];
};
template <int Chunks>
__device__ __noinline__ RowChunks<Chunks> convert_row(const std::byte* row, DeviceType type, int dim, int first) {
  RowChunks<Chunks> chunks;
#pragma unroll 1
  for (int j = 0; j < Chunks; ++j) {
    const int element = j * 32 + first;
    chunks.v[j] = element < dim ? convert_to_bf16(row, type, element) : make_uint4(0, 0, 0, 0);
  }
  return chunks;
}

// A lane's chunks of a row of the caller's, in bf16; beyond `dim`, where q is 0, any; all zero without a row.
template <int Chunks>
__device__ __forceinline__ void load_as_bf16(const std::byte* row, DeviceType type, int dim, int lane, uint4 (&into)[Chunks]) {
  const int first = lane % 4 * 8;
#pragma unroll
  for (int j = 0; j < Chunks; ++j) into[j] = make_uint4(0, 0, 0, 0);
  if (row == nullptr) return;
  if (type == DeviceType::bf16) {
    const bool whole = dim == Chunks * 32;
#pragma unroll
    for (int j = 0; j < Chunks; ++j) {
      const int element = whole || j * 32 + first < dim ? j * 32 + first : first;
      into[j] = *reinterpret_cast<const uint4*>(row + element * 2);
    }
  } else {
    const RowChunks<Chunks> chunks = convert_row<Chunks>(row, type, dim, first);
#pragma unroll
    for (int j = 0; j < Chunks; ++j) into[j] = chunks.v[j];
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

// The group's q of a sequence in memory: [G, dim], contiguous.
struct QueryRows {
  const std::byte* data;
  int bytes;  // of an element
  __device__ QueryRows(const SelectTask& task, const Piece& piece) : bytes(task.query.type == DeviceType::f32 ? 4 : 2) {
    data = static_cast<const std::byte*>(task.query.q) + piece.sequence * task.query.sequence_stride +
           static_cast<std::int64_t>(piece.head) * task.group * task.query.shape.head_dim * bytes;
  }
};

// L2 and the address translation learn of q before it is there: only a hint.
__device__ __forceinline__ void prefetch_query(const SelectTask& task, const QueryRows& q) {
  const int at = static_cast<int>(threadIdx.x) * 64;
  if (at < task.group * task.query.shape.head_dim * q.bytes) prefetch_l2(q.data + at);
}

// Words that go to shared memory together.
template <int Words>
__device__ __forceinline__ void store_words(std::byte* to, const std::uint32_t (&words)[Words]) {
  if constexpr (Words == 1) *reinterpret_cast<std::uint32_t*>(to) = words[0];
  if constexpr (Words == 2) *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
#pragma unroll
  for (int i = 0; Words >= 4 && i < Words; i += 4)
    reinterpret_cast<uint4*>(to)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
}

// This lane's elements of a head's q; 0 beyond head_dim and in the padding of the group.
template <typename Shape>
struct LaneQuery {
  static constexpr int kEach = Shape::kDim / 32;
  float v[kEach];
  LaneQuery() = default;
  __device__ __forceinline__ LaneQuery(const SelectTask& task, const Piece& piece, const QueryRows& q, int member) : v{} {
    const int dim = task.query.shape.head_dim, element = piece.lane * kEach;
    if (member < task.group && element < dim) load_query(q.data + (member * dim + element) * q.bytes, task.query.type, v);
  }
};

// One warp: q of head `member` into shared memory, as f32, as two bf16 parts and as two int8 parts of the largest element.
template <typename Shape>
__device__ __forceinline__ void stage_query(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared,
                                            const LaneQuery<Shape>& of_lane, int member) {
  constexpr int kEach = LaneQuery<Shape>::kEach;
  const auto& v = of_lane.v;
  const int element = piece.lane * kEach;
  const int column = member / 4 * 8 + member % 4;
  std::uint32_t words[kEach], lead[kEach / 2], rest[kEach / 2];
  float largest = 0;
  bool sound = true;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    words[i] = __float_as_uint(v[i]);
    largest = fmaxf(largest, fabsf(v[i]));
    sound = sound && fabsf(v[i]) <= 3.4e38f;
  }
#pragma unroll
  for (int i = 0; i < kEach; i += 2) {
    lead[i / 2] = pack_bf16(v[i], v[i + 1]);
    rest[i / 2] = pack_bf16(v[i] - __uint_as_float(lead[i / 2] << 16), v[i + 1] - __uint_as_float(lead[i / 2] & 0xffff0000u));
  }
  store_words(reinterpret_cast<std::byte*>(shared.query + member * Shape::kDim + element), words);
  std::byte* row16 = shared.query16 + column * Shape::kBf16Pitch + element * 2;
  store_words(row16, lead);
  store_words(row16 + 4 * Shape::kBf16Pitch, rest);
  // positive floats order like their bits
  const float unit = fmaxf(__uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest))), 1e-30f) * (1.0f / 127.0f);
  if constexpr (Shape::kInt8) {
    const float inverse = __fdividef(1.0f, unit);
    std::uint32_t bytes[2][(kEach + 3) / 4] = {};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float x = v[i] * inverse;
      const int whole = __float2int_rn(x), part = __float2int_rn((x - static_cast<float>(whole)) * 128);
      bytes[0][i / 4] |= (static_cast<std::uint32_t>(whole) & 255u) << (i % 4 * 8);
      bytes[1][i / 4] |= (static_cast<std::uint32_t>(part) & 255u) << (i % 4 * 8);
    }
    std::byte* row8 = shared.query8 + column * Shape::kInt8Pitch + element;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if constexpr (kEach >= 4) store_words(row8 + part * 4 * Shape::kInt8Pitch, bytes[part]);
      if constexpr (kEach == 2)
        *reinterpret_cast<std::uint16_t*>(row8 + part * 4 * Shape::kInt8Pitch) = static_cast<std::uint16_t>(bytes[part][0]);
    }
  }
  const bool all_sound = __all_sync(~0u, sound);
  if (piece.lane != 0) return;
  // int8 would turn a NaN into a number
  shared.query_scale[member] = all_sound ? unit : __int_as_float(0x7fffffff);
  if (!all_sound && member < task.group) atomicOr(task.status + piece.sequence, device_status::non_finite);
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

// acc += q x rows, q's leading parts and remainders apart.
template <typename Shape, int Chunks>
__device__ __forceinline__ void multiply_int8(const QueryFragments<Shape, Chunks>& query, const RowTile<Chunks>& rows,
                                              int (&acc)[Shape::kQueryTiles][4]) {
#pragma unroll
  for (int j = 0; j < Chunks; ++j) {
#pragma unroll
    for (int i = 0; i < Shape::kQueryTiles; ++i) {
      const uint4 b = query.get(i, j);
      mma_int8(acc[i], rows.low[j].x, rows.high[j].x, rows.low[j].y, rows.high[j].y, b.x, b.y);
      mma_int8(acc[i], rows.low[j].z, rows.high[j].z, rows.low[j].w, rows.high[j].w, b.z, b.w);
    }
  }
}

template <typename Shape, int Chunks>
__device__ __forceinline__ void score_int8(const QueryFragments<Shape, Chunks>& query, const RowTile<Chunks>& rows, int lane,
                                           TileScores<Shape>& scores) {
  int acc[Shape::kQueryTiles][4] = {};
  multiply_int8(query, rows, acc);
  join_parts<Shape>(acc, 1.0f / 128.0f, lane, scores);
}

// Base-2 logits, from base-2 logits before the softcap; slope: that of the cap. Not inlined: rare.
__device__ __noinline__ inline float2 cap_logit(float softcap, float logit) {
  // tanh x = 1 - 2 / (exp(2 x) + 1)
  const float tanh = 1 - __fdividef(2.0f, exp2_fast(__fdividef(2 * logit, softcap)) + 1);
  return make_float2(kLog2E * softcap * tanh, 1 - tanh * tanh);
}

}  // namespace tactic::cuda
