// The caller's view of K and V: checks that its rows can be read at all, as far as that can be known.
#include <limits>

#include "capi/structs.h"

namespace tactic::capi {
namespace {

void check_stride(const std::string& name, std::int64_t stride, std::int64_t row_bytes, std::int64_t element) {
  if (stride < row_bytes) {
    refuse(name + " is " + std::to_string(stride) + " bytes, must be at least a row (" + std::to_string(row_bytes) + " bytes)");
  }
  if (stride % element != 0) {
    refuse(name + " is " + std::to_string(stride) + " bytes, must be a multiple of the element's size (" +
           std::to_string(element) + ")");
  }
}

Rows rows_of(const tactic_rows& c, const std::string& name, int dim, int kv_heads, bool paged) {
  if (c.data == nullptr) refuse(name + ".data is null; give the address of token 0's row");
  check_range((name + ".dtype").c_str(), c.dtype, TACTIC_F32, TACTIC_BF16);
  if (c.dim != dim) {
    refuse(name + ".dim is " + std::to_string(c.dim) + ", must be " + std::to_string(dim) + ", the head dimension of the layer");
  }
  Rows rows;
  rows.type = static_cast<DType>(c.dtype);
  rows.dim = c.dim;
  const auto element = static_cast<std::int64_t>(size_of(rows.type));
  const std::int64_t row_bytes = c.dim * element;
  if (reinterpret_cast<std::uintptr_t>(c.data) % static_cast<std::uintptr_t>(element) != 0) {
    refuse(name + ".data is not aligned to the element's size (" + std::to_string(element) + " bytes)");
  }
  rows.data = static_cast<const std::byte*>(c.data);
  check_stride(name + ".token_stride", c.token_stride, row_bytes, element);
  rows.token_stride = c.token_stride;
  if (kv_heads > 1) {
    check_stride(name + ".head_stride", c.head_stride, row_bytes, element);
    rows.head_stride = c.head_stride;
  }
  if (paged) {
    check_stride(name + ".block_stride", c.block_stride, row_bytes, element);
    rows.block_stride = c.block_stride;
  }
  return rows;
}

void check_blocks(const tactic_kv_view& c) {
  const std::int64_t blocks = (c.tokens + c.block_size - 1) / c.block_size;
  for (std::int64_t b = 0; b < blocks; ++b) {
    if (c.block_table[b] >= 0 && c.block_table[b] < c.block_count) continue;
    refuse("kv.block_table[" + std::to_string(b) + "] is " + std::to_string(c.block_table[b]) + ", must be in [0, " +
           std::to_string(c.block_count) + "), the cache's blocks");
  }
}

}  // namespace

tactic_kv_view Growing<tactic_kv_view>::defaults() {
  tactic_kv_view view{};
  view.size = sizeof view;
  view.block_size = 1;
  return view;
}

KvView to_core(const tactic_kv_view& c, const Shape& shape) {
  if (c.kv_heads != shape.kv_heads) {
    refuse("kv.kv_heads is " + std::to_string(c.kv_heads) + ", must be " + std::to_string(shape.kv_heads) +
           ", the KV heads of the layer");
  }
  check_range("kv.tokens", c.tokens, 1, std::numeric_limits<std::int32_t>::max());
  const bool paged = c.block_table != nullptr;
  KvView view;
  view.k = rows_of(c.k, "kv.k", shape.head_dim, shape.kv_heads, paged);
  view.v = rows_of(c.v, "kv.v", shape.v_head_dim, shape.kv_heads, paged);
  view.kv_heads = c.kv_heads;
  view.tokens = c.tokens;
  if (paged) {
    check_range("kv.block_size", c.block_size, 1, std::numeric_limits<std::int32_t>::max());
    check_range("kv.block_count", c.block_count, 0, std::numeric_limits<std::int32_t>::max());
    if (c.block_count > 0) check_blocks(c);
    view.block_table = c.block_table;
    view.block_size = c.block_size;
  }
  return view;
}

}  // namespace tactic::capi

using namespace tactic::capi;

tactic_status tactic_kv_view_init(tactic_kv_view* view, size_t size) {
  return guard([&] { write_defaults(view, size); });
}
