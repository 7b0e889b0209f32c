// A layer for tests of whole steps: keys in topics, queries that look at some of them, segments built straight from the topics
// (no k-means, so that decode's tests stand on their own), and the true attention weights to judge a step by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "decode/decode.h"
#include "support/kv.h"

namespace tactic::test {

struct LayerSpec {
  KvSpec kv{.tokens = 1500};
  int topics = 60;         // centers that keys lie around, per KV head
  float noise = 0.5f;      // standard deviation of a key's elements around its center, whose own is 1
  float sharpness = 2.0f;  // standard deviation of the logits over topics
  int sinks = 4;           // always attended, before the first segment
  int recent = 64;         // behind the last
  int segments = 1;        // 0: nothing is clustered
  int cluster_size = 16;   // most tokens a cluster takes of its topic
  bool int8_centroids = true;
};

// Clusters of one KV head over tokens [first, last): each topic's tokens, cut into pieces of cluster_size.
inline HeadClusters clusters_of(const KvCase& kv, const LayerSpec& spec, const std::vector<int>& topic, std::int64_t first,
                                std::int64_t last, int kv_head) {
  const auto d = static_cast<std::size_t>(spec.kv.shape.head_dim);
  const auto dv = static_cast<std::size_t>(spec.kv.shape.v_head_dim);
  std::vector<std::vector<std::int32_t>> members;
  for (int wanted = 0; wanted < spec.topics; ++wanted) {
    for (auto t = first, n = std::int64_t{0}; t < last; ++t) {
      if (topic[static_cast<std::size_t>(t)] != wanted) continue;
      if (n++ % spec.cluster_size == 0) members.emplace_back();
      members.back().push_back(static_cast<std::int32_t>(t));
    }
  }
  HeadClusters head;
  head.count = static_cast<int>(members.size());
  const std::size_t count = members.size();
  head.tokens.resize(static_cast<std::size_t>(last - first));
  head.begin.resize(count + 1);
  head.spread.resize(count);
  head.mean_v.resize(count * dv);
  head.mean_v_scale.resize(count);
  if (spec.int8_centroids) {
    head.centroid8.resize(count * d);
    head.centroid_scale.resize(count);
  } else {
    head.centroid16.resize(count * d);
  }
  const auto quantise = [](const std::vector<double>& x, std::int8_t* to) {
    double top = 1e-30;
    for (const double v : x) top = std::max(top, std::abs(v));
    const double scale = top / 127;
    for (std::size_t i = 0; i < x.size(); ++i) to[i] = static_cast<std::int8_t>(std::lround(x[i] / scale));
    return static_cast<float>(scale);
  };
  std::vector<double> covariance(d * d, 0.0);
  double spread_sum = 0;
  std::int32_t at = 0;
  head.begin[0] = 0;
  for (std::size_t c = 0; c < count; ++c) {
    const auto size = static_cast<double>(members[c].size());
    std::vector<double> mean(d, 0.0), mean_v(dv, 0.0);
    for (const std::int32_t t : members[c]) {
      head.tokens[static_cast<std::size_t>(at++)] = t;
      const std::vector<float> k = kv.k(t, kv_head), v = kv.v(t, kv_head);
      for (std::size_t i = 0; i < d; ++i) mean[i] += k[i] / size;
      for (std::size_t i = 0; i < dv; ++i) mean_v[i] += v[i] / size;
    }
    head.begin[c + 1] = at;
    double spread = 0;
    for (const std::int32_t t : members[c]) {
      const std::vector<float> k = kv.k(t, kv_head);
      for (std::size_t i = 0; i < d; ++i) {
        const double difference = k[i] - mean[i];
        spread += difference * difference;
        for (std::size_t j = 0; j < d; ++j) covariance[i * d + j] += difference * (k[j] - mean[j]);
      }
    }
    spread_sum += spread;
    head.spread[c] = static_cast<float>(spread / size);
    head.mean_v_scale[c] = quantise(mean_v, head.mean_v.data() + c * dv);
    if (spec.int8_centroids) {
      head.centroid_scale[c] = quantise(mean, head.centroid8.data() + c * d);
    } else {
      for (std::size_t i = 0; i < d; ++i) head.centroid16[c * d + i] = float_to_half(static_cast<float>(mean[i]));
    }
  }
  const auto tokens = static_cast<double>(last - first);
  head.covariance.resize(d * d);
  for (std::size_t i = 0; i < d * d; ++i) head.covariance[i] = static_cast<float>(covariance[i] / tokens);
  head.mean_spread = static_cast<float>(spread_sum / tokens);
  return head;
}

class LayerCase {
 public:
  explicit LayerCase(const LayerSpec& spec) : spec_(spec), kv_(spec.kv) {
    const Shape& s = spec.kv.shape;
    kv_.params().scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    std::uniform_int_distribution<int> any(0, spec.topics - 1);
    for (std::int64_t t = 0; t < spec.kv.tokens; ++t) topic_.push_back(any(kv_.random()));
    for (int h = 0; h < s.kv_heads; ++h) {
      std::vector<std::vector<float>> centers;
      for (int i = 0; i < spec.topics; ++i) centers.push_back(kv_.normal(static_cast<std::size_t>(s.head_dim), 1));
      for (std::int64_t t = 0; t < spec.kv.tokens; ++t) {
        std::vector<float> key = kv_.normal(static_cast<std::size_t>(s.head_dim), spec.noise);
        const auto& center = centers[static_cast<std::size_t>(topic_[static_cast<std::size_t>(t)])];
        for (std::size_t i = 0; i < key.size(); ++i) key[i] += center[i];
        kv_.set_k(t, h, key);
      }
    }
    kv_.q() = draw_queries();
    rebuild();
  }

  // Queries of one token: the heads of a group share three quarters of their direction's variance.
  std::vector<float> draw_queries() {
    const Shape& s = spec_.kv.shape;
    std::vector<float> q;
    for (int h = 0; h < s.kv_heads; ++h) {
      const std::vector<float> shared = kv_.normal(static_cast<std::size_t>(s.head_dim), spec_.sharpness * std::sqrt(0.75f));
      for (int g = 0; g < s.group(); ++g) {
        const std::vector<float> own = kv_.normal(static_cast<std::size_t>(s.head_dim), spec_.sharpness * 0.5f);
        for (std::size_t i = 0; i < own.size(); ++i) q.push_back(shared[i] + own[i]);
      }
    }
    return q;
  }

  // Segments and tables anew, from the keys as they are now.
  void rebuild() {
    const std::int64_t first = spec_.sinks;
    const std::int64_t waiting = spec_.kv.tokens - spec_.recent - first;
    index_ = {};
    for (int s = 0; s < spec_.segments; ++s) {
      auto segment = std::make_shared<Segment>();
      segment->first = first + waiting * s / spec_.segments;
      segment->last = first + waiting * (s + 1) / spec_.segments;
      segment->head_dim = spec_.kv.shape.head_dim;
      segment->v_head_dim = spec_.kv.shape.v_head_dim;
      for (int h = 0; h < spec_.kv.shape.kv_heads; ++h)
        segment->heads.push_back(clusters_of(kv_, spec_, topic_, segment->first, segment->last, h));
      index_.segments.push_back(segment);
    }
    for (int h = 0; h < spec_.kv.shape.kv_heads; ++h) index_.tables.push_back(make_table(index_.segments, h));
  }

  const LayerSpec& spec() const { return spec_; }
  KvCase& kv() { return kv_; }
  LayerIndex& index() { return index_; }
  const std::vector<int>& topics() const { return topic_; }

 private:
  LayerSpec spec_;
  KvCase kv_;
  std::vector<int> topic_;
  LayerIndex index_;
};

// What a step gave, with all of its report.
struct StepResult {
  Status status = Status::ok;
  std::vector<float> out;              // [q_heads, v_head_dim]
  std::vector<float> lse;              // [q_heads]
  std::vector<std::int64_t> attended;  // [kv_heads]
  std::vector<std::int64_t> budget;    // [q_heads]
  std::vector<float> estimated;        // [q_heads]
  std::vector<std::uint64_t> bits;     // [kv_heads, words]
  std::int64_t words = 0;
  StepReport report;

  bool has(int kv_head, std::int64_t token) const {
    return (bits[static_cast<std::size_t>(kv_head * words + token / 64)] >> (token % 64) & 1) != 0;
  }
};

template <typename Step>
StepResult run_step(const Shape& shape, std::int64_t tokens, Step&& step) {
  StepResult r;
  r.words = (tokens + 63) / 64;
  r.out.assign(static_cast<std::size_t>(shape.q_heads * shape.v_head_dim), NAN);
  r.lse.assign(static_cast<std::size_t>(shape.q_heads), NAN);
  r.attended.assign(static_cast<std::size_t>(shape.kv_heads), -1);
  r.budget.assign(static_cast<std::size_t>(shape.q_heads), -1);
  r.estimated.assign(static_cast<std::size_t>(shape.q_heads), NAN);
  r.bits.assign(static_cast<std::size_t>(shape.kv_heads * r.words), 0);
  r.report = {.attended = r.attended, .estimated_mass = r.estimated, .budget = r.budget, .token_bits = r.bits};
  r.status = step(r.out.data(), r.lse.data(), &r.report);
  return r;
}

inline StepResult cpu_step(Team& team, Workspace& workspace, const Query& query, const KvView& kv, const LayerIndex* index,
                           const Options& options) {
  return run_step(query.shape, kv.tokens, [&](float* out, float* lse, StepReport* report) {
    return decode_step(team, workspace, query, kv, index, options, out, lse, report);
  });
}

inline StepResult reference_step(const Query& query, const KvView& kv, const LayerIndex* index, const Options& options) {
  return run_step(query.shape, kv.tokens, [&](float* out, float* lse, StepReport* report) {
    return reference::decode_step(query, kv, index, options, out, lse, report);
  });
}

// Attention weights of every query head over all tokens, [q_heads, tokens], the sink logit in the denominator; double precision.
inline std::vector<double> true_weights(const Query& query, const KvView& kv) {
  const auto n = static_cast<std::size_t>(kv.tokens);
  const int group = query.shape.group();
  std::vector<double> weights;
  std::vector<float> logits(static_cast<std::size_t>(group) * n);
  for (int h = 0; h < query.shape.kv_heads; ++h) {
    reference::score_list(query, kv, h, {nullptr, 0, kv.tokens}, logits.data(), kv.tokens);
    for (int g = 0; g < group; ++g) {
      const float* row = logits.data() + static_cast<std::size_t>(g) * n;
      double top = *std::max_element(row, row + n);
      const float* sinks = query.params.sink_logits;
      if (sinks != nullptr) top = std::max(top, static_cast<double>(sinks[h * group + g]));
      double sum = sinks != nullptr ? std::exp(sinks[h * group + g] - top) : 0;
      for (std::size_t t = 0; t < n; ++t) sum += std::exp(row[t] - top);
      for (std::size_t t = 0; t < n; ++t) weights.push_back(std::exp(row[t] - top) / sum);
    }
  }
  return weights;
}

// True share of a query head's mass (over tokens) that a step attended.
inline double mass_reached(const StepResult& r, const std::vector<double>& weights, const Shape& shape, std::int64_t tokens,
                           int q_head) {
  double reached = 0;
  double all = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double w = weights[static_cast<std::size_t>(q_head * tokens + t)];
    all += w;
    if (r.has(q_head / shape.group(), t)) reached += w;
  }
  return reached / all;
}

}  // namespace tactic::test
