// Part of tactic.hpp: the options.
#pragma once

#include <cstdint>

#include "tactic/error.hpp"

namespace tactic {

enum class method : std::int32_t { tactic = TACTIC_METHOD_TACTIC, paper = TACTIC_METHOD_PAPER, full = TACTIC_METHOD_FULL };
enum class metric : std::int32_t { query = TACTIC_METRIC_QUERY, diagonal = TACTIC_METRIC_DIAGONAL, l2 = TACTIC_METRIC_L2 };
enum class goal : std::int32_t { mass = TACTIC_GOAL_MASS, error = TACTIC_GOAL_ERROR };

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
  float outlier_share = 0.1f;
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
    o.outlier_share = c.outlier_share;
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
    c.outlier_share = outlier_share;
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

}  // namespace tactic
