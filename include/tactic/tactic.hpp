// C++20 over tactic.h, header only: RAII handles, plain structs with defaults, spans, exceptions. Shapes, units, cost and thread
// safety of every call are those of the C function it calls; tactic.h documents them.
//
// All names are lower case; the library's own code in namespace tactic (never installed) has CamelCase types, so that a program
// inside this repository may include both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tactic/tactic.h"

namespace tactic {

// What a failed call throws: the status and the message of the library.
class error : public std::runtime_error {
 public:
  error(tactic_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  tactic_status status() const noexcept { return status_; }

 private:
  tactic_status status_;
};

// Throws when a C call failed. For calls of the C API that this header does not wrap.
inline void check(tactic_status status) {
  if (status != TACTIC_OK) throw error(status, tactic_last_error());
}

// A span must hold what the call reads or writes.
inline void check_length(const char* name, std::size_t length, std::size_t needed) {
  if (length >= needed) return;
  throw error(TACTIC_INVALID_ARGUMENT,
              std::string(name) + " holds " + std::to_string(length) + " elements, must hold at least " + std::to_string(needed));
}

enum class method : std::int32_t { tactic = TACTIC_METHOD_TACTIC, paper = TACTIC_METHOD_PAPER, full = TACTIC_METHOD_FULL };
enum class metric : std::int32_t { query = TACTIC_METRIC_QUERY, diagonal = TACTIC_METRIC_DIAGONAL, l2 = TACTIC_METRIC_L2 };
enum class goal : std::int32_t { mass = TACTIC_GOAL_MASS, error = TACTIC_GOAL_ERROR };
enum class dtype : std::int32_t { f32 = TACTIC_F32, f16 = TACTIC_F16, bf16 = TACTIC_BF16 };

// tactic_options with the same fields, ranges and defaults.
struct options {
  method choose_by = method::tactic;  // tactic_options.method
  float mass = 0.9f;
  std::int32_t cluster_size = 32;
  std::int32_t iterations = 3;
  std::int32_t segment_tokens = 0;
  metric cluster_in = metric::query;  // tactic_options.metric
  float shrinkage = 0.1f;
  bool int8_centroids = true;
  std::uint64_t seed = 0x7ac71c;
  std::int32_t sink_tokens = 4;
  std::int32_t recent_tokens = 64;
  std::int32_t recluster_tokens = 2048;
  std::int32_t min_context = 1024;
  goal aim = goal::error;  // tactic_options.goal
  bool spread = true;
  bool joint = true;
  bool verify = true;
  bool tail_factor = true;
  std::int32_t tail_clusters = 512;
  bool promise = false;
  float fit_head = 0.02f;
  float fit_window = 0.01f;
  float fit_first = 0.10f;
  float fit_second = 0.60f;

  // The paper's settings.
  static options paper() {
    tactic_options c{};
    check(tactic_options_init_paper(&c, sizeof c));
    return from_c(c);
  }

  static options from_c(const tactic_options& c) {
    options o;
    o.choose_by = static_cast<method>(c.method);
    o.mass = c.mass;
    o.cluster_size = c.cluster_size;
    o.iterations = c.iterations;
    o.segment_tokens = c.segment_tokens;
    o.cluster_in = static_cast<metric>(c.metric);
    o.shrinkage = c.shrinkage;
    o.int8_centroids = c.int8_centroids != 0;
    o.seed = c.seed;
    o.sink_tokens = c.sink_tokens;
    o.recent_tokens = c.recent_tokens;
    o.recluster_tokens = c.recluster_tokens;
    o.min_context = c.min_context;
    o.aim = static_cast<goal>(c.goal);
    o.spread = c.spread != 0;
    o.joint = c.joint != 0;
    o.verify = c.verify != 0;
    o.tail_factor = c.tail_factor != 0;
    o.tail_clusters = c.tail_clusters;
    o.promise = c.promise != 0;
    o.fit_head = c.fit_head;
    o.fit_window = c.fit_window;
    o.fit_first = c.fit_first;
    o.fit_second = c.fit_second;
    return o;
  }

  tactic_options to_c() const {
    tactic_options c{};
    check(tactic_options_init(&c, sizeof c));
    c.method = static_cast<std::int32_t>(choose_by);
    c.mass = mass;
    c.cluster_size = cluster_size;
    c.iterations = iterations;
    c.segment_tokens = segment_tokens;
    c.metric = static_cast<std::int32_t>(cluster_in);
    c.shrinkage = shrinkage;
    c.int8_centroids = int8_centroids ? 1 : 0;
    c.seed = seed;
    c.sink_tokens = sink_tokens;
    c.recent_tokens = recent_tokens;
    c.recluster_tokens = recluster_tokens;
    c.min_context = min_context;
    c.goal = static_cast<std::int32_t>(aim);
    c.spread = spread ? 1 : 0;
    c.joint = joint ? 1 : 0;
    c.verify = verify ? 1 : 0;
    c.tail_factor = tail_factor ? 1 : 0;
    c.tail_clusters = tail_clusters;
    c.promise = promise ? 1 : 0;
    c.fit_head = fit_head;
    c.fit_window = fit_window;
    c.fit_first = fit_first;
    c.fit_second = fit_second;
    return c;
  }
};

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

template <typename Handle, void (*destroy)(Handle*)>
struct deleter {
  void operator()(Handle* handle) const noexcept { destroy(handle); }
};
using context_pointer = std::unique_ptr<tactic_context, deleter<tactic_context, tactic_context_destroy>>;
using sequence_pointer = std::unique_ptr<tactic_sequence, deleter<tactic_sequence, tactic_sequence_destroy>>;

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

// Threads and scratch: tactic_context.
class context {
 public:
  // threads 0: one per core the process may use.
  explicit context(std::int32_t threads = 0) : context(threads, nullptr, nullptr) {}
  // Workers are threads of the caller's pool (see tactic_parallel_run).
  context(std::int32_t threads, tactic_parallel_run parallel_run, void* user) {
    tactic_context_config config{};
    check(tactic_context_config_init(&config, sizeof config));
    config.threads = threads;
    config.parallel_run = parallel_run;
    config.parallel_user = user;
    tactic_context* fresh = nullptr;
    check(tactic_context_create(&config, &fresh));
    handle_.reset(fresh);
  }

  std::int32_t threads() const noexcept { return tactic_context_threads(handle_.get()); }
  tactic_context* handle() const noexcept { return handle_.get(); }

  // tactic_attend_dense: every token, no sequence.
  void attend_dense(const attention& layer, const kv_view& kv, const attend_args& args, report* into = nullptr) {
    const tactic_attention shape = layer.to_c();
    const tactic_kv_view view = kv.to_c();
    const tactic_attend_args rows = detail::to_c(args, layer);
    if (into == nullptr) return check(tactic_attend_dense(handle_.get(), &shape, &view, &rows, nullptr));
    tactic_report c = detail::prepare(*into, layer, args.rows, kv.tokens);
    const tactic_status status = tactic_attend_dense(handle_.get(), &shape, &view, &rows, &c);
    detail::take(*into, c);
    check(status);
  }

 private:
  detail::context_pointer handle_;
};

// How a model turns pairs of dimensions: the rotary fields of tactic_sequence_config.
struct rotary {
  tactic_rotary_layout layout = TACTIC_ROTARY_UNKNOWN;
  std::int32_t pairs = 0;
  float base = 10000.0f;
  std::span<const float> frequency = {};  // [pairs], instead of base
};

struct sequence_config {
  attention layer;
  std::int32_t layers = 1;
  tactic::rotary turns = {};
  tactic::options choice = {};
};

// The index of one sequence: tactic_sequence. Movable; fork() copies.
class sequence {
 public:
  explicit sequence(const sequence_config& config) : layer_(config.layer) {
    tactic_sequence_config c{};
    check(tactic_sequence_config_init(&c, sizeof c));
    const tactic_options choice = config.choice.to_c();
    c.attention = config.layer.to_c();
    c.layers = config.layers;
    c.rotary_layout = config.turns.layout;
    c.rotary_pairs = config.turns.pairs;
    c.rotary_base = config.turns.base;
    if (!config.turns.frequency.empty()) {
      check_length("rotary.frequency", config.turns.frequency.size(),
                   detail::product(config.turns.pairs > 0 ? config.turns.pairs : config.layer.head_dim / 2, 1));
      c.rotary_frequency = config.turns.frequency.data();
    }
    c.options = &choice;
    tactic_sequence* fresh = nullptr;
    check(tactic_sequence_create(&c, &fresh));
    handle_.reset(fresh);
  }

  sequence fork() const {
    tactic_sequence* fresh = nullptr;
    check(tactic_sequence_fork(handle_.get(), &fresh));
    return sequence(layer_, detail::sequence_pointer(fresh));
  }

  options get_options() const {
    tactic_options c{};
    check(tactic_options_init(&c, sizeof c));
    check(tactic_sequence_get_options(handle_.get(), &c));
    return options::from_c(c);
  }
  void set_options(const options& choice) {
    const tactic_options c = choice.to_c();
    check(tactic_sequence_set_options(handle_.get(), &c));
  }

  // q [tokens, q_heads, head_dim], contiguous.
  void observe(std::int32_t layer, std::span<const float> q, std::int32_t tokens = 1) {
    check_length("q", q.size(), detail::product(tokens, layer_.q_heads, layer_.head_dim));
    check(tactic_sequence_observe(handle_.get(), layer, q.data(), tokens, 0, 0));
  }
  update_report update(context& team, std::int32_t layer, const kv_view& kv, bool may_recluster = true) {
    tactic_update_report done{};
    check(tactic_update_report_init(&done, sizeof done));
    const tactic_kv_view view = kv.to_c();
    check(tactic_sequence_update(handle_.get(), team.handle(), layer, &view, may_recluster ? 1 : 0, &done));
    return {done.clustered, done.seconds};
  }
  void attend(context& team, std::int32_t layer, const kv_view& kv, const attend_args& args, report* into = nullptr) {
    const tactic_kv_view view = kv.to_c();
    const tactic_attend_args rows = detail::to_c(args, layer_);
    if (into == nullptr) return check(tactic_sequence_attend(handle_.get(), team.handle(), layer, &view, &rows, nullptr));
    tactic_report c = detail::prepare(*into, layer_, args.rows, kv.tokens);
    const tactic_status status = tactic_sequence_attend(handle_.get(), team.handle(), layer, &view, &rows, &c);
    detail::take(*into, c);
    check(status);
  }

  std::int64_t due(std::int32_t layer, std::int64_t tokens) const {
    std::int64_t count = 0;
    check(tactic_sequence_due(handle_.get(), layer, tokens, &count));
    return count;
  }
  // Clustered tokens [first, second).
  std::pair<std::int64_t, std::int64_t> clustered(std::int32_t layer) const {
    std::pair<std::int64_t, std::int64_t> range;
    check(tactic_sequence_clustered(handle_.get(), layer, &range.first, &range.second));
    return range;
  }
  std::size_t index_bytes() const {
    std::size_t bytes = 0;
    check(tactic_sequence_index_bytes(handle_.get(), &bytes));
    return bytes;
  }

  void truncate(std::int64_t tokens) { check(tactic_sequence_truncate(handle_.get(), tokens)); }
  void invalidate(std::int64_t first, std::int64_t last) { check(tactic_sequence_invalidate(handle_.get(), first, last)); }
  void clear() { check(tactic_sequence_clear(handle_.get())); }

  void save(const std::string& path) const { check(tactic_sequence_save(handle_.get(), path.c_str())); }
  void load(const std::string& path) { check(tactic_sequence_load(handle_.get(), path.c_str())); }
  std::vector<std::byte> save() const {
    std::size_t bytes = 0;
    check(tactic_sequence_save_size(handle_.get(), &bytes));
    std::vector<std::byte> buffer(bytes);
    check(tactic_sequence_save_buffer(handle_.get(), buffer.data(), buffer.size(), &bytes));
    return buffer;
  }
  void load(std::span<const std::byte> buffer) {
    check(tactic_sequence_load_buffer(handle_.get(), buffer.data(), buffer.size()));
  }

  const attention& layer() const noexcept { return layer_; }
  tactic_sequence* handle() const noexcept { return handle_.get(); }

 private:
  sequence(const attention& layer, detail::sequence_pointer handle) : layer_(layer), handle_(std::move(handle)) {}

  attention layer_;
  detail::sequence_pointer handle_;
};

inline std::string version() { return tactic_version(); }
inline std::string build_info() { return tactic_build_info(); }

}  // namespace tactic
