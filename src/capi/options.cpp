// Options and configurations: defaults, checks, translation.
#include <cmath>
#include <limits>

#include "capi/structs.h"

namespace tactic::capi {
namespace {

bool to_switch(const char* field, std::int32_t value) {
  if (value != 0 && value != 1) {
    refuse(std::string("options.") + field + " is " + std::to_string(value) + ", must be 0 or 1");
  }
  return value == 1;
}

void check_finite(const char* field, float value, bool may_be_zero) {
  if (std::isfinite(value) && (value > 0 || (may_be_zero && value == 0))) return;
  refuse(std::string(field) + " is " + std::to_string(value) + ", must be finite and " + (may_be_zero ? ">= 0" : "> 0"));
}

Rotary rotary_of(const tactic_sequence_config& config, int head_dim) {
  Rotary rotary;
  check_range("config.rotary_layout", config.rotary_layout, TACTIC_ROTARY_UNKNOWN, TACTIC_ROTARY_HALVES);
  rotary.layout = static_cast<Rotary::Layout>(config.rotary_layout);
  if (config.rotary_layout == TACTIC_ROTARY_UNKNOWN || config.rotary_layout == TACTIC_ROTARY_NONE) return rotary;
  check_range("config.rotary_pairs", config.rotary_pairs, 0, head_dim / 2);
  const int pairs = config.rotary_pairs == 0 ? head_dim / 2 : config.rotary_pairs;
  if (config.rotary_frequency == nullptr) check_finite("config.rotary_base", config.rotary_base, false);
  for (int p = 0; p < pairs; ++p) {
    if (config.rotary_frequency != nullptr) {
      check_finite(("config.rotary_frequency[" + std::to_string(p) + "]").c_str(), config.rotary_frequency[p], true);
      rotary.frequency.push_back(config.rotary_frequency[p]);
    } else {
      rotary.frequency.push_back(static_cast<float>(std::pow(static_cast<double>(config.rotary_base), -double(p) / pairs)));
    }
  }
  return rotary;
}

}  // namespace

void check_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  refuse(std::string(name) + " is " + std::to_string(value) + ", must be in [" + std::to_string(low) + ", " +
         std::to_string(high) + "]");
}

tactic_options Growing<tactic_options>::defaults() { return to_c(Options{}); }

tactic_sequence_config Growing<tactic_sequence_config>::defaults() {
  tactic_sequence_config config{};
  config.size = sizeof config;
  config.rotary_base = 10000.0f;
  return config;
}

tactic_options to_c(const Options& o) {
  tactic_options c{};
  c.size = sizeof c;
  c.method = static_cast<std::int32_t>(o.method);
  c.mass = o.mass;
  c.cluster_size = o.cluster_size;
  c.iterations = o.iterations;
  c.segment_tokens = o.segment_tokens;
  c.metric = static_cast<std::int32_t>(o.metric);
  c.shrinkage = o.shrinkage;
  c.int8_centroids = o.int8_centroids ? 1 : 0;
  c.seed = o.seed;
  c.outlier_share = o.outlier_share;
  c.sink_tokens = o.sink_tokens;
  c.recent_tokens = o.recent_tokens;
  c.recluster_tokens = o.recluster_tokens;
  c.min_context = o.min_context;
  c.goal = static_cast<std::int32_t>(o.goal);
  c.spread = o.spread ? 1 : 0;
  c.joint = o.joint ? 1 : 0;
  c.verify = o.verify ? 1 : 0;
  c.tail_factor = o.tail_factor ? 1 : 0;
  c.tail_clusters = o.tail_clusters;
  c.promise = o.promise ? 1 : 0;
  c.fit_head = o.fit_head;
  c.fit_window = o.fit_window;
  c.fit_first = o.fit_first;
  c.fit_second = o.fit_second;
  return c;
}

Options to_core(const tactic_options& c) {
  Options o;
  // Enumerators first: a value outside an enum must not reach the switches behind it.
  check_range("options.method", c.method, TACTIC_METHOD_TACTIC, TACTIC_METHOD_FULL);
  check_range("options.metric", c.metric, TACTIC_METRIC_QUERY, TACTIC_METRIC_L2);
  o.method = static_cast<Method>(c.method);
  o.mass = c.mass;
  o.cluster_size = c.cluster_size;
  o.iterations = c.iterations;
  o.segment_tokens = c.segment_tokens;
  o.metric = static_cast<Metric>(c.metric);
  o.shrinkage = c.shrinkage;
  o.int8_centroids = to_switch("int8_centroids", c.int8_centroids);
  o.seed = c.seed;
  o.outlier_share = c.outlier_share;
  o.sink_tokens = c.sink_tokens;
  o.recent_tokens = c.recent_tokens;
  o.recluster_tokens = c.recluster_tokens;
  o.min_context = c.min_context;
  check_range("options.goal", c.goal, TACTIC_GOAL_MASS, TACTIC_GOAL_ERROR);
  o.goal = static_cast<Goal>(c.goal);
  o.spread = to_switch("spread", c.spread);
  o.joint = to_switch("joint", c.joint);
  o.verify = to_switch("verify", c.verify);
  o.tail_factor = to_switch("tail_factor", c.tail_factor);
  o.tail_clusters = c.tail_clusters;
  o.promise = to_switch("promise", c.promise);
  o.fit_head = c.fit_head;
  o.fit_window = c.fit_window;
  o.fit_first = c.fit_first;
  o.fit_second = c.fit_second;
  try {
    validate(o);
  } catch (const Error& e) {
    throw Error(e.status(), std::string("options.") + e.what());
  }
  return o;
}

Attention to_core(const tactic_attention& c) {
  Attention a;
  a.shape = {c.q_heads, c.kv_heads, c.head_dim, c.v_head_dim == 0 ? c.head_dim : c.v_head_dim};
  try {
    validate(a.shape);
  } catch (const Error& e) {
    throw Error(e.status(), std::string("attention.") + e.what());
  }
  check_finite("attention.scale", c.scale, true);
  check_finite("attention.softcap", c.softcap, true);
  a.params.scale = c.scale == 0 ? static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim))) : c.scale;
  a.params.softcap = c.softcap;
  return a;
}

SequenceConfig to_core(const tactic_sequence_config& c) {
  SequenceConfig config;
  check_range("config.layers", c.layers, 1, 4096);
  const Attention attention = to_core(c.attention);
  config.layers = c.layers;
  config.shape = attention.shape;
  config.params = attention.params;
  config.rotary = rotary_of(c, config.shape.head_dim);
  if (c.options != nullptr) config.options = to_core(read_struct(c.options));
  return config;
}

}  // namespace tactic::capi

using namespace tactic::capi;

tactic_status tactic_options_init(tactic_options* options, size_t size) {
  return guard([&] { write_defaults(options, size); });
}

tactic_status tactic_options_init_paper(tactic_options* options, size_t size) {
  return guard([&] { write_defaults(options, size, to_c(tactic::paper_options())); });
}

tactic_status tactic_sequence_config_init(tactic_sequence_config* config, size_t size) {
  return guard([&] { write_defaults(config, size); });
}
