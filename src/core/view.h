// Views over the caller's K and V: never copied, never owned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace tactic {

// Rows of one tensor (K or V). The row of (token t, KV head h) holds `dim` contiguous elements of `type` at
//   data + block(t) * block_stride + in_block(t) * token_stride + h * head_stride      (strides in bytes)
// where block(t) and in_block(t) come from the KvView's block table; without one, block(t) = 0 and in_block(t) = t.
struct Rows {
  const std::byte* data = nullptr;
  DType type = DType::f16;
  int dim = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t block_stride = 0;
};

// K and V of one sequence in one layer, tokens 0 .. tokens - 1 in sequence order. Fits llama.cpp's cache
// ([cell, head, dim]; a block table of block size 1 where cells are not in order), vLLM's and FlashInfer's pages, and plain
// [heads, tokens, dim] arrays.
struct KvView {
  Rows k;
  Rows v;
  int kv_heads = 0;
  std::int64_t tokens = 0;
  const std::int32_t* block_table = nullptr;  // [ceil(tokens / block_size)] block ids, or null
  int block_size = 1;                         // tokens a block holds; only read with a block table
};

inline const std::byte* row(const KvView& kv, const Rows& rows, std::int64_t token, int head) {
  if (kv.block_table == nullptr) return rows.data + token * rows.token_stride + head * rows.head_stride;
  const std::int64_t block = kv.block_table[token / kv.block_size];
  return rows.data + block * rows.block_stride + (token % kv.block_size) * rows.token_stride + head * rows.head_stride;
}

}  // namespace tactic
