// Random queries and K/V caches for tests: seeded, in several layouts, every byte that is no valid element a NaN; and how far
// f32 attention may be from the double-precision reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attend/attend.h"
#include "core/half.h"
#include "core/isa.h"
#include "core/types.h"
#include "core/view.h"

namespace tactic::test {

// How the rows of (token, KV head) lie in memory.
enum class Layout {
  side_by_side,  // [token][head][dim], poison between tokens: llama.cpp
  padded,        // [token][head][dim], poison between heads too
  head_major,    // [head][token][dim]
  blocks,        // [block][token][head][dim], blocks shuffled and poison blocks between: paged caches
};

struct KvSpec {
  Shape shape{4, 2, 64, 64};
  DType k_type = DType::f16;
  DType v_type = DType::f16;
  std::int64_t tokens = 100;
  Layout layout = Layout::side_by_side;
  int block_size = 16;  // of Layout::blocks
  std::uint64_t seed = 1;
  float q_scale = 1;  // standard deviations of the elements
  float k_scale = 1;
  float v_scale = 1;
};

// A cache and a query row. Not copyable: the views point into it.
class KvCase {
 public:
  explicit KvCase(const KvSpec& spec) : spec_(spec), random_(spec.seed) {
    const Shape& s = spec.shape;
    if (spec.layout == Layout::blocks) fill_block_table();
    k_ = make_rows(s.head_dim, spec.k_type, k_bytes_);
    v_ = make_rows(s.v_head_dim, spec.v_type, v_bytes_);
    q_ = normal(static_cast<std::size_t>(s.q_heads * s.head_dim), spec.q_scale);
    for (std::int64_t t = 0; t < spec.tokens; ++t) {
      for (int h = 0; h < s.kv_heads; ++h) {
        set_k(t, h, normal(static_cast<std::size_t>(s.head_dim), spec.k_scale));
        set_v(t, h, normal(static_cast<std::size_t>(s.v_head_dim), spec.v_scale));
      }
    }
  }
  KvCase(const KvCase&) = delete;
  KvCase& operator=(const KvCase&) = delete;

  const KvSpec& spec() const { return spec_; }
  std::vector<float>& q() { return q_; }
  AttentionParams& params() { return params_; }
  Query query() const { return {q_.data(), spec_.shape, params_}; }
  KvView view() const {
    return {k_, v_, spec_.shape.kv_heads, spec_.tokens, table_.empty() ? nullptr : table_.data(), spec_.block_size};
  }
  void set_k(std::int64_t token, int head, const std::vector<float>& values) { set(k_, k_bytes_, token, head, values); }
  void set_v(std::int64_t token, int head, const std::vector<float>& values) { set(v_, v_bytes_, token, head, values); }
  std::vector<float> k(std::int64_t token, int head) const { return get(k_, token, head); }
  std::vector<float> v(std::int64_t token, int head) const { return get(v_, token, head); }

  std::vector<float> normal(std::size_t count, float scale) {
    std::normal_distribution<float> distribution(0, scale);
    std::vector<float> values(count);
    for (float& x : values) x = distribution(random_);
    return values;
  }
  std::mt19937_64& random() { return random_; }

 private:
  static constexpr std::int64_t kGap = 64;     // poison bytes between rows; keeps rows as aligned as they were
  static constexpr std::int64_t kMargin = 64;  // poison rows' worth of elements before and behind everything

  void fill_block_table() {  // every second block of a shuffled range
    const std::int64_t blocks = (spec_.tokens + spec_.block_size - 1) / spec_.block_size;
    for (std::int64_t b = 0; b < blocks; ++b) table_.push_back(static_cast<std::int32_t>(2 * b + 1));
    std::shuffle(table_.begin(), table_.end(), random_);
  }

  Rows make_rows(int dim, DType type, std::vector<std::byte>& bytes) const {
    const std::int64_t row_bytes = dim * static_cast<std::int64_t>(size_of(type));
    const int heads = spec_.shape.kv_heads;
    Rows rows{nullptr, type, dim, 0, 0, 0};
    std::int64_t total = 0;
    if (spec_.layout == Layout::head_major) {
      rows.token_stride = row_bytes;
      rows.head_stride = (spec_.tokens + 1) * row_bytes;
      total = heads * rows.head_stride;
    } else {
      rows.head_stride = row_bytes + (spec_.layout == Layout::padded ? kGap : 0);
      rows.token_stride = heads * rows.head_stride + kGap;
      rows.block_stride = spec_.block_size * rows.token_stride + kGap;
      total = table_.empty() ? spec_.tokens * rows.token_stride
                             : (2 * static_cast<std::int64_t>(table_.size()) + 1) * rows.block_stride;
    }
    const std::int64_t margin = kMargin * dim * 4;
    bytes.assign(static_cast<std::size_t>(total + 2 * margin), std::byte{0xff});  // NaN in every type
    rows.data = bytes.data() + margin;
    return rows;
  }

  void set(const Rows& rows, std::vector<std::byte>& bytes, std::int64_t token, int head, const std::vector<float>& values) {
    std::byte* to = bytes.data() + (row(view(), rows, token, head) - bytes.data());
    for (std::size_t i = 0; i < values.size(); ++i) store_element(to, rows.type, i, values[i]);
  }
  std::vector<float> get(const Rows& rows, std::int64_t token, int head) const {
    std::vector<float> values(static_cast<std::size_t>(rows.dim));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = load_element(row(view(), rows, token, head), rows.type, i);
    return values;
  }

  KvSpec spec_;
  std::mt19937_64 random_;
  std::vector<std::int32_t> table_;
  std::vector<std::byte> k_bytes_;
  std::vector<std::byte> v_bytes_;
  Rows k_;
  Rows v_;
  std::vector<float> q_;
  AttentionParams params_{0.125f, 0.0f, nullptr};
};

// Storage for a Partial.
struct PartialStorage {
  PartialStorage(int head_count, int v_head_dim)
      : heads(head_count),
        dim(v_head_dim),
        output(static_cast<std::size_t>(head_count * v_head_dim), NAN),
        maximum(static_cast<std::size_t>(head_count), NAN),
        sum(static_cast<std::size_t>(head_count), NAN) {}
  Partial get() { return {output.data(), maximum.data(), sum.data()}; }

  int heads;
  int dim;
  std::vector<float> output;
  std::vector<float> maximum;
  std::vector<float> sum;
};

// The instruction sets that this machine can run.
inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (supported(isa)) isas.push_back(isa);
  }
  return isas;
}

// Runs a test body under one instruction set and restores the choice.
class IsaScope {
 public:
  explicit IsaScope(Isa isa) : before_(active_isa()) { force_isa(isa); }
  ~IsaScope() { force_isa(before_); }
  IsaScope(const IsaScope&) = delete;
  IsaScope& operator=(const IsaScope&) = delete;

 private:
  Isa before_;
};

inline double norm(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  return std::sqrt(sum);
}

// Bounds of the error of f32 attention, from norms and the unit roundoff u = 2^-24.
struct Tolerance {
  double logit = 0;   // absolute
  double weight = 0;  // relative, of exp(s - m) and of their sum
  double output = 0;  // absolute, of the normalised output's elements
};

// A dot product of d products in any order is off by at most d u |q| |k| (Cauchy-Schwarz over |q_i| |k_i|), the softcap adds
// 3e-7 cap. A weight inherits twice the logit's error (s and m), the rounding of s - m (at most 2 u max |s|) and exp's 1.6e-7;
// a sum of n weights adds n u. Numerator and denominator of the output are off by that much each.
inline Tolerance tolerance(const KvCase& kv, double q_norm, double k_norm, double v_max) {
  const double u = 0x1p-24;
  const AttentionParams params = kv.query().params;
  const double s_max = std::abs(params.scale) * q_norm * k_norm;
  Tolerance bound;
  bound.logit = (kv.spec().shape.head_dim + 3) * u * s_max + 3e-7 * params.softcap;
  bound.weight = 2 * bound.logit + 2 * u * s_max + 1.6e-7 + static_cast<double>(kv.spec().tokens) * u;
  bound.output = 2 * bound.weight * v_max;
  return bound;
}

// The same from the data of the case.
inline Tolerance tolerance(KvCase& kv) {
  const Shape& shape = kv.spec().shape;
  double q_norm = 0;
  double k_norm = 0;
  double v_max = 0;
  for (int h = 0; h < shape.q_heads; ++h) {
    const auto begin = kv.q().begin() + static_cast<std::ptrdiff_t>(h) * shape.head_dim;
    q_norm = std::max(q_norm, norm({begin, begin + shape.head_dim}));
  }
  for (std::int64_t t = 0; t < kv.spec().tokens; ++t) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      k_norm = std::max(k_norm, norm(kv.k(t, h)));
      for (const float x : kv.v(t, h)) v_max = std::max(v_max, std::abs(static_cast<double>(x)));
    }
  }
  return tolerance(kv, q_norm, k_norm, v_max);
}

}  // namespace tactic::test
