#include "core/options.h"

#include <cmath>
#include <string>
#include <utility>

#include "core/error.h"

namespace tactic {
namespace {

std::string text(double value) {
  std::string s = std::to_string(value);
  if (s.find('.') != std::string::npos) {
    while (s.back() == '0') s.pop_back();
    if (s.back() == '.') s.pop_back();
  }
  return s;
}

void in_range(const char* field, double value, double low, double high, bool open_low = false) {
  const bool ok = std::isfinite(value) && (open_low ? value > low : value >= low) && value <= high;
  if (ok) return;
  throw Error(Status::invalid_argument, std::string(field) + " is " + text(value) + ", must be in " + (open_low ? "(" : "[") +
                                            text(low) + ", " + text(high) + "]");
}

}  // namespace

Options paper_options() {
  Options o;
  o.method = Method::paper;
  o.metric = Metric::l2;
  o.goal = Goal::mass;
  o.iterations = 10;
  o.outlier_share = 0;
  o.cluster_size = 16;  // paper 5.1; 4.2 gives 32
  o.int8_centroids = false;
  o.spread = o.joint = o.verify = o.tail_factor = o.promise = false;
  o.tail_clusters = 0;
  return o;
}

void validate(const Options& o) {
  in_range("method", static_cast<int>(o.method), 0, 2);
  in_range("mass", o.mass, 0, 1, true);
  in_range("cluster_size", o.cluster_size, 2, 4096);
  in_range("iterations", o.iterations, 1, 100);
  in_range("outlier_share", o.outlier_share, 0, 0.5);
  in_range("segment_tokens", o.segment_tokens, 0, 1 << 30);
  if (o.segment_tokens != 0) in_range("segment_tokens", o.segment_tokens, 16.0 * o.cluster_size, 1 << 30);
  in_range("metric", static_cast<int>(o.metric), 0, 2);
  in_range("goal", static_cast<int>(o.goal), 0, 1);
  in_range("shrinkage", o.shrinkage, 0, 1, true);
  in_range("sink_tokens", o.sink_tokens, 0, 1024);
  in_range("recent_tokens", o.recent_tokens, 0, 65536);
  in_range("recluster_tokens", o.recluster_tokens, 16.0 * o.cluster_size, 1 << 30);
  in_range("min_context", o.min_context, 0, 1 << 30);
  in_range("tail_clusters", o.tail_clusters, 0, 65536);
  in_range("fit_head", o.fit_head, 0, 1);
  in_range("fit_window", o.fit_window, 0, 0.5);
  in_range("fit_first", o.fit_first, 0, 1);
  in_range("fit_second", o.fit_second, o.fit_first, 1, true);
}

void validate(const Shape& s) {
  in_range("kv_heads", s.kv_heads, 1, 4096);
  in_range("q_heads", s.q_heads, 1, 65536);
  if (s.q_heads % s.kv_heads != 0) {
    throw Error(Status::invalid_argument, "q_heads is " + std::to_string(s.q_heads) + ", must be a multiple of kv_heads (" +
                                              std::to_string(s.kv_heads) + ")");
  }
  in_range("q_heads / kv_heads", s.group(), 1, kMaxGroup);
  for (const auto& [name, dim] : {std::pair{"head_dim", s.head_dim}, std::pair{"v_head_dim", s.v_head_dim}}) {
    if (dim != 64 && dim != 80 && dim != 96 && dim != 128 && dim != 256) {
      throw Error(Status::invalid_argument,
                  std::string(name) + " is " + std::to_string(dim) + ", must be 64, 80, 96, 128 or 256");
    }
  }
}

}  // namespace tactic
