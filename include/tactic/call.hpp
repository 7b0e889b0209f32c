// Part of tactic.hpp: what goes into an attention call and comes out of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tactic/error.hpp"

namespace tactic {

enum class dtype : std::int32_t { f32 = TACTIC_F32, f16 = TACTIC_F16, bf16 = TACTIC_BF16 };

// tactic_attention: the shape of a layer and what it computes.
struct attention {
  std::int32_t q_heads = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t v_head_dim = 0;  // 0: head_dim
  float scale = 0;              // 0: 1 / sqrt(head_dim)
  float softcap = 0;

  std::int32_t output_dim() const { return v_head_dim == 0 ? head_dim : v_head_dim; }
  tactic_attention to_c() const { return {q_heads, kv_heads, head_dim, v_head_dim, scale, softcap}; }
};

// tactic_rows: where the rows of K or V lie. Strides in bytes.
struct rows {
  const void* data = nullptr;
  dtype type = dtype::f16;
  std::int32_t dim = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t block_stride = 0;

  tactic_rows to_c() const { return {data, static_cast<std::int32_t>(type), dim, token_stride, head_stride, block_stride}; }
};

// tactic_kv_view. The block table, where there is one, must outlive the calls that get the view.
struct kv_view {
  rows k;
  rows v;
  std::int64_t tokens = 0;
  std::int32_t kv_heads = 0;
  std::span<const std::int32_t> block_table = {};
  std::int32_t block_size = 1;
  std::int64_t block_count = 0;

  tactic_kv_view to_c() const {
    tactic_kv_view c{};
    check(tactic_kv_view_init(&c, sizeof c));
    c.k = k.to_c();
    c.v = v.to_c();
    c.tokens = tokens;
    c.kv_heads = kv_heads;
    if (block_table.data() != nullptr) {
      if (block_size > 0 && tokens > 0) {
        check_length("block_table", block_table.size(), static_cast<std::size_t>((tokens - 1) / block_size + 1));
      }
      c.block_table = block_table.data();
      c.block_size = block_size;
      c.block_count = block_count;
    }
    return c;
  }
};

// The rows of a call: tactic_attend_args. Empty spans: not given.
struct attend_args {
  std::span<const float> q;  // [rows, q_heads, head_dim]
  std::span<float> out;      // [rows, q_heads, v_head_dim]
  std::span<float> lse = {};
  std::int32_t rows = 1;
  float mass = 0;
  std::int64_t q_row_stride = 0;
  std::span<const std::int64_t> row_tokens = {};
  std::span<const float> sink_logits = {};
};

// tactic_report with arrays of its own, which keep their memory from call to call.
struct report {
  std::vector<std::int64_t> attended;     // [rows, kv_heads]
  std::vector<std::int64_t> budget;       // [rows, q_heads]
  std::vector<float> estimated_mass;      // [rows, q_heads]
  std::vector<std::uint64_t> token_bits;  // [rows, kv_heads, words]; only with want_token_bits
  bool want_token_bits = false;
  double bytes = 0;
  double dense_bytes = 0;
  double rank_us = 0;
  double estimate_us = 0;
  double union_us = 0;
  double attend_us = 0;
  double total_us = 0;
};

// What update() did: tactic_update_report.
struct update_report {
  std::int64_t clustered = 0;
  double seconds = 0;
};

namespace detail {

inline std::size_t product(std::int64_t a, std::int64_t b, std::int64_t c = 1) {
  return a > 0 && b > 0 && c > 0 ? static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c) : 0;
}

inline tactic_attend_args to_c(const attend_args& args, const attention& layer) {
  tactic_attend_args c{};
  check(tactic_attend_args_init(&c, sizeof c));
  const std::int64_t row = std::int64_t{layer.q_heads} * layer.head_dim;
  if (args.rows > 0) {
    const std::int64_t stride = args.q_row_stride > 0 ? args.q_row_stride : row;
    check_length("q", args.q.size(), product(args.rows - 1, stride) + product(1, row));
    check_length("out", args.out.size(), product(args.rows, layer.q_heads, layer.output_dim()));
    if (!args.lse.empty()) check_length("lse", args.lse.size(), product(args.rows, layer.q_heads));
    if (!args.row_tokens.empty()) check_length("row_tokens", args.row_tokens.size(), product(args.rows, 1));
    if (!args.sink_logits.empty()) check_length("sink_logits", args.sink_logits.size(), product(layer.q_heads, 1));
  }
  c.q = args.q.data();
  c.q_row_stride = args.q_row_stride;
  c.rows = args.rows;
  c.mass = args.mass;
  c.row_tokens = args.row_tokens.empty() ? nullptr : args.row_tokens.data();
  c.sink_logits = args.sink_logits.empty() ? nullptr : args.sink_logits.data();
  c.out = args.out.data();
  c.lse = args.lse.empty() ? nullptr : args.lse.data();
  return c;
}

// Sizes the report's arrays and points the C struct at them.
inline tactic_report prepare(report& to, const attention& layer, std::int32_t rows, std::int64_t tokens) {
  to.attended.resize(product(rows, layer.kv_heads));
  to.budget.resize(product(rows, layer.q_heads));
  to.estimated_mass.resize(product(rows, layer.q_heads));
  to.token_bits.resize(to.want_token_bits ? product(rows, layer.kv_heads, (tokens + 63) / 64) : 0);
  tactic_report c{};
  check(tactic_report_init(&c, sizeof c));
  c.attended = to.attended.data();
  c.attended_count = to.attended.size();
  c.budget = to.budget.data();
  c.budget_count = to.budget.size();
  c.estimated_mass = to.estimated_mass.data();
  c.estimated_mass_count = to.estimated_mass.size();
  c.token_bits = to.want_token_bits ? to.token_bits.data() : nullptr;
  c.token_bits_count = to.token_bits.size();
  return c;
}

inline void take(report& to, const tactic_report& c) {
  to.bytes = c.bytes;
  to.dense_bytes = c.dense_bytes;
  to.rank_us = c.rank_us;
  to.estimate_us = c.estimate_us;
  to.union_us = c.union_us;
  to.attend_us = c.attend_us;
  to.total_us = c.total_us;
}

}  // namespace detail

}  // namespace tactic
