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
#include <string>
#include <utility>
#include <vector>

#include "tactic/call.hpp"
#include "tactic/error.hpp"
#include "tactic/options.hpp"
#include "tactic/tactic.h"

namespace tactic {

namespace detail {

template <typename Handle, void (*destroy)(Handle*)>
struct deleter {
  void operator()(Handle* handle) const noexcept { destroy(handle); }
};
using context_pointer = std::unique_ptr<tactic_context, deleter<tactic_context, tactic_context_destroy>>;
using sequence_pointer = std::unique_ptr<tactic_sequence, deleter<tactic_sequence, tactic_sequence_destroy>>;

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
