// What the attention kernels are given.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace tactic::cuda {

constexpr int kTile = 16;             // tokens a warp weighs at once: k of mma m16n8k16
constexpr int kRepresentedTile = 32;  // clusters a warp weighs at once: half the bytes of a tile of tokens in 16 bit
constexpr int kMaxWarps = 12;         // of a thread block
constexpr int kMaxPieces = 30;        // of DeviceLists: a lane each, and two lanes for the always-attended ranges
constexpr int kMaxProblems = 8192;    // (sequence, KV head) pairs of a call: their prefix sums lie in shared memory

// Where rows of K or V lie, in units of 16 bytes, so that 32 bits reach 64 GiB.
struct RowSteps {
  const std::byte* data;
  std::uint32_t token, head, block, sequence;
};

// Quotients of numbers below 2^18 by a number below 2^13 with one multiplication.
struct SmallDivisor {
  std::uint32_t inverse = 0;  // ceil(2^32 / d); 0 for d = 1
};
constexpr SmallDivisor divisor(std::uint32_t d) { return {d == 1 ? 0 : static_cast<std::uint32_t>(((1ull << 32) + d - 1) / d)}; }

struct AttendArgs {
  DeviceQuery query;
  DeviceOutput output;
  DeviceLists lists;  // pieces = 0: none
  RowSteps k, v;
  float k_scale, v_scale, inverse_v_scale;
  DeviceType k_type, v_type;
  const std::int32_t* lengths;
  const std::int32_t* block_table;
  std::int32_t max_length, max_blocks, block_size, block_count;
  std::int32_t block_shift;      // log2 block_size, or -1
  const std::int32_t* range;     // null: every token is attended
  const std::int32_t* clusters;  // the rest of the index as in DeviceIndex
  const std::byte* mean_v;
  const float* mean_v_scale;
  std::int32_t capacity;
  std::int32_t problems, kv_heads, group, dim, v_dim;
  SmallDivisor by_heads, by_pieces;
  std::uint32_t* status;
  // scratch, zero between calls
  float* partial;           // [thread blocks + problems, G, v_dim] unnormalised outputs
  float2* partial_sum;      // [thread blocks + problems, G] maximum of log2 domain logits, sum
  std::int32_t ring_bytes;  // of one warp
  std::int32_t math_bytes;  // of one warp, besides
  bool tables;              // room for WorkTables in shared memory
};

}  // namespace tactic::cuda
