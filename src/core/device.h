// What the rooms' CUDA backends hand to each other: plain structs of device pointers, passed to kernels by value.
//
// Everything a step learns (budgets, lists, lengths) stays on the device; what is in these structs is fixed when a CUDA graph is
// captured. All pointers are device pointers, aligned to 16 bytes, unless a comment says otherwise. "Head" in a dimension means
// KV head; S is the number of sequences of the batch, G the group. Dimensions in brackets, last one contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

struct CUstream_st;  // the CUDA runtime's, so that these headers need no CUDA

namespace tactic {

using DeviceStream = CUstream_st*;  // cudaStream_t

// Element type of the caller's arrays on the device. The first three are DType's.
enum class DeviceType : std::int32_t { f32 = 0, f16 = 1, bf16 = 2, fp8_e4m3 = 3 };

constexpr std::size_t size_of(DeviceType type) { return type == DeviceType::f32 ? 4 : type == DeviceType::fp8_e4m3 ? 1 : 2; }

// Rows of K or of V of a batch. The row of (sequence s, token t, KV head h), `dim` contiguous elements, begins at
//   without a block table: data + s * sequence_stride + t * token_stride + h * head_stride
//   with one:              data + block_table[s][t / block_size] * block_stride + t % block_size * token_stride + h * head_stride
// Strides in bytes, multiples of 16. An element's value is `scale` times what is stored.
struct DeviceRows {
  const std::byte* data = nullptr;
  DeviceType type = DeviceType::bf16;
  int dim = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t block_stride = 0;     // with a block table
  std::int64_t sequence_stride = 0;  // without
  float scale = 1;                   // fp8; 1 otherwise
};

// K and V of a batch of sequences in one layer.
struct DeviceKv {
  DeviceRows k;
  DeviceRows v;
  int sequences = 0;
  int kv_heads = 0;
  std::int32_t max_length = 0;                // no sequence is longer while the graph lives; sizes scratch and grids
  const std::int32_t* lengths = nullptr;      // [S] tokens now, the newest included; outside 0 .. max_length: reported
  const std::int32_t* block_table = nullptr;  // [S, max_blocks] block ids, or null
  std::int32_t max_blocks = 0;                // row length of block_table
  std::int32_t block_size = 1;                // tokens a block holds
  std::int32_t block_count = 0;               // of the cache: tokens of other ids are left out and reported. 0: 64 GiB of them
};

// One query row per sequence: [S, q_heads, head_dim] post-RoPE, unscaled, heads contiguous.
struct DeviceQuery {
  const void* q = nullptr;
  DeviceType type = DeviceType::bf16;
  std::int64_t sequence_stride = 0;  // bytes
  Shape shape;
  float scale = 0;                     // of q . k
  float softcap = 0;                   // > 0: logits become softcap * tanh(logit / softcap)
  const float* sink_logits = nullptr;  // [q_heads] or null
};

struct DeviceOutput {
  void* out = nullptr;  // [S, q_heads, v_head_dim]
  DeviceType type = DeviceType::bf16;
  std::int64_t sequence_stride = 0;  // bytes
  float* lse = nullptr;              // [S, q_heads] base e, sinks of the denominator included; or null
};

// The clusters of one layer for a batch. Slots of equal capacity; counts are on the device, so that sequences of different length
// and later segments replay in the same graph. Written by cluster/, read by select/ and attend/.
struct DeviceIndex {
  std::int32_t capacity = 0;        // clusters a (sequence, head) can hold, a multiple of 64
  std::int32_t token_capacity = 0;  // clustered tokens a (sequence, head) can hold, a multiple of 64
  std::int32_t part_capacity = 0;   // parts
  bool int8_centroids = true;       // else bf16

  std::int32_t* clusters = nullptr;  // [S, heads] clusters in use: columns 0 .. clusters - 1
  std::int32_t* range = nullptr;     // [S, 2] tokens first .. last - 1 are clustered; 0, 0: none, all tokens are attended
  // Per column. Columns from `clusters` up to a multiple of 64 are readable and finite.
  std::int8_t* centroid8 = nullptr;     // [S, heads, capacity, head_dim] mean of K / scale, or null
  float* centroid_scale = nullptr;      // [S, heads, capacity], or null
  std::uint16_t* centroid16 = nullptr;  // [S, heads, capacity, head_dim] bf16, or null
  float* spread = nullptr;              // [S, heads, capacity] mean squared distance to the centroid in the metric
  std::int32_t* begin = nullptr;        // [S, heads, capacity + 64] first place in `tokens`; entry `clusters` is the end
  std::int32_t* tokens = nullptr;       // [S, heads, token_capacity] token numbers in cluster order, ascending inside a cluster
  std::int8_t* mean_v = nullptr;        // [S, heads, capacity, v_head_dim] mean of V / scale
  float* mean_v_scale = nullptr;        // [S, heads, capacity]
  // Columns fall into parts that share one covariance: a part may hold several segments (16 bit d * d a part are read per step,
  // so keep them few: the prompt's, and one for what was generated).
  std::int32_t* parts = nullptr;       // [S] parts in use
  std::int32_t* part_begin = nullptr;  // [S, heads, part_capacity + 1] first column; entry `parts` is `clusters`
  std::uint16_t* shape = nullptr;  // [S, heads, part_capacity, head_dim, head_dim] bf16, symmetric: S / t, the pooled covariance
                                   // of k - centroid(k) over the mean spread; half variance h = scale^2 q' shape q / 2
};

// What select/ hands to attend/, rewritten by every step. A (sequence, head)'s columns are cut into `pieces` equal stretches that
// are chosen by different thread blocks; each leaves a stretch of tokens and one of represented clusters.
struct DeviceLists {
  std::int32_t pieces = 0;
  std::int32_t token_stride = 0;        // of a (sequence, head) in `tokens`: the index's token_capacity
  std::int32_t represented_stride = 0;  // of a piece in `represented`
  std::int32_t* tokens = nullptr;       // [S, heads, token_stride] token numbers
  std::int32_t* token_first = nullptr;  // [S, heads, pieces] where a piece's tokens begin in its (sequence, head)'s stretch
  std::int32_t* token_count = nullptr;  // [S, heads, pieces]
  // What a piece lists, told before its tokens are there, so that attention divides the work while they are written:
  // {token_count, token_first, represented_count} + 1 each, 1; all zero until they are known. Null: not told; else `select` runs
  // right before attention, and lets it start once its own predecessor has ended: q, K, V and lengths are there.
  std::int32_t* early_counts = nullptr;  // [S, heads, pieces, 4]
  // Clusters represented by their mean V: like a token whose logit is log_weight and whose V is mean_v * mean_v_scale.
  std::int32_t* represented = nullptr;        // [S, heads, pieces, represented_stride] columns
  float* log_weight = nullptr;                // [S, heads, pieces, represented_stride, G]
  std::int32_t* represented_count = nullptr;  // [S, heads, pieces]
  // Estimated log-sum-exp of all logits, natural log, no attention sink: about what attention will find. NaN or infinite: the
  // head is unsound (NaN in q or K); its lists are valid all the same.
  float* reference = nullptr;  // [S, heads, G]
};
// Always attended, in no list: tokens 0 .. range[0] - 1 and range[1] .. length - 1.

// Bits of the status words [S] of a step, one word per sequence, set with atomicOr, never cleared by a step.
namespace device_status {
constexpr std::uint32_t non_finite = 1;  // NaN or infinity in q, or in the result of some head (K, V): that head's output is NaN
constexpr std::uint32_t bad_length = 2;  // lengths[s] outside 0 .. max_length, or below the clustered range: output is zero
constexpr std::uint32_t bad_block = 4;   // a block id outside the cache; its tokens were left out
constexpr std::uint32_t bad_index = 8;   // the index contradicts itself (counts over capacity, tokens outside the sequence)
constexpr std::uint32_t list_overflow = 16;  // a list was full; the output lacks some clusters' mean V
}  // namespace device_status

}  // namespace tactic
