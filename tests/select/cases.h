// Random clusters for the tests of select: segments built by hand, without k-means.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "core/half.h"
#include "select/select.h"
#include "support/kv.h"

namespace tactic::test {

struct ClusterSpec {
  std::vector<int> clusters = {100};  // of each segment
  int head_dim = 64;
  int v_head_dim = 64;
  bool int8 = true;
  int mean_size = 8;
  std::int64_t first = 5;  // token that the first segment starts with
  std::uint64_t seed = 1;
};

// A segment of one KV head whose clusters hold tokens dealt at random.
inline std::shared_ptr<const Segment> random_segment(const ClusterSpec& spec, int count, std::int64_t first,
                                                     std::mt19937_64& random) {
  auto segment = std::make_shared<Segment>();
  segment->first = first;
  segment->head_dim = spec.head_dim;
  segment->v_head_dim = spec.v_head_dim;
  segment->heads.resize(1);
  HeadClusters& head = segment->heads[0];
  head.count = count;
  head.begin.resize(static_cast<std::size_t>(count) + 1);
  head.begin[0] = 0;
  std::uniform_int_distribution<int> size(1, 2 * spec.mean_size - 1);
  for (int c = 0; c < count; ++c)
    head.begin[static_cast<std::size_t>(c) + 1] = head.begin[static_cast<std::size_t>(c)] + size(random);
  const int tokens = head.begin[static_cast<std::size_t>(count)];
  segment->last = first + tokens;
  head.tokens.resize(static_cast<std::size_t>(tokens));
  std::iota(head.tokens.begin(), head.tokens.end(), static_cast<std::int32_t>(first));
  std::shuffle(head.tokens.begin(), head.tokens.end(), random);
  for (int c = 0; c < count; ++c) {
    std::sort(head.tokens.begin() + head.begin[static_cast<std::size_t>(c)],
              head.tokens.begin() + head.begin[static_cast<std::size_t>(c) + 1]);
  }
  const auto d = static_cast<std::size_t>(spec.head_dim);
  const auto n = static_cast<std::size_t>(count);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> byte(-127, 127);
  std::uniform_real_distribution<float> positive(0.1f, 1.0f);
  if (spec.int8) {
    head.centroid8.resize(n * d);
    for (auto& x : head.centroid8) x = static_cast<std::int8_t>(byte(random));
    head.centroid_scale.resize(n);
    for (auto& x : head.centroid_scale) x = positive(random) / 64;
  } else {
    head.centroid16.resize(n * d);
    for (auto& x : head.centroid16) x = float_to_half(normal(random));
  }
  head.spread.resize(n);
  for (auto& x : head.spread) x = positive(random);
  head.mean_v.resize(n * static_cast<std::size_t>(spec.v_head_dim));
  for (auto& x : head.mean_v) x = static_cast<std::int8_t>(byte(random));
  head.mean_v_scale.resize(n);
  for (auto& x : head.mean_v_scale) x = positive(random) / 127;
  head.covariance.resize(d * d);  // a a^T + I
  std::vector<float> a(d);
  for (float& x : a) x = normal(random);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < d; ++j) head.covariance[i * d + j] = 0.1f * a[i] * a[j] + (i == j ? 0.5f : 0.0f);
  }
  head.mean_spread = 0.5f;
  return segment;
}

inline HeadTable random_table(const ClusterSpec& spec) {
  std::mt19937_64 random(spec.seed);
  std::vector<std::shared_ptr<const Segment>> segments;
  std::int64_t first = spec.first;
  for (const int count : spec.clusters) {
    segments.push_back(random_segment(spec, count, first, random));
    first = segments.back()->last;
  }
  return make_table(segments, 0);
}

// A table whose clusters have these sizes and nothing else of interest.
inline HeadTable table_of_sizes(const std::vector<int>& sizes) {
  auto segment = std::make_shared<Segment>();
  segment->head_dim = segment->v_head_dim = 64;
  segment->heads.resize(1);
  HeadClusters& head = segment->heads[0];
  const std::size_t n = sizes.size();
  head.count = static_cast<int>(n);
  head.begin.resize(n + 1);
  head.begin[0] = 0;
  std::partial_sum(sizes.begin(), sizes.end(), head.begin.begin() + 1);
  segment->last = head.begin[n];
  head.tokens.resize(static_cast<std::size_t>(segment->last));
  std::iota(head.tokens.begin(), head.tokens.end(), 0);
  head.centroid8.resize(n * 64);
  head.centroid8.fill(0);
  for (Buffer<float>* field : {&head.centroid_scale, &head.spread}) {
    field->resize(n);
    field->fill(1.0f);
  }
  const std::vector<std::shared_ptr<const Segment>> segments{segment};
  return make_table(segments, 0);
}

// [G, stride] with poison in the padding.
inline std::vector<float> matrix(const HeadTable& table, int group) {
  return std::vector<float>(static_cast<std::size_t>(group) * static_cast<std::size_t>(table.stride), NAN);
}

// Masses as attention has them: log density normal, partly shared between the heads.
inline std::vector<float> random_masses(const HeadTable& table, int group, std::uint64_t seed, float deviation = 2.0f,
                                        float shared = 0.7f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> mass = matrix(table, group);
  for (int c = 0; c < table.count; ++c) {
    const float common = normal(random);
    for (int g = 0; g < group; ++g) {
      const float log_density = deviation * (std::sqrt(shared) * common + std::sqrt(1 - shared) * normal(random));
      mass[static_cast<std::size_t>(g) * static_cast<std::size_t>(table.stride) + static_cast<std::size_t>(c)] =
          table.size[static_cast<std::size_t>(c)] * std::exp(log_density);
    }
  }
  return mass;
}

inline double tokens_in(const HeadTable& table, const std::vector<std::uint8_t>& chosen) {
  double tokens = 0;
  for (int c = 0; c < table.count; ++c)
    tokens += chosen[static_cast<std::size_t>(c)] != 0 ? static_cast<double>(table.size[static_cast<std::size_t>(c)]) : 0.0;
  return tokens;
}

}  // namespace tactic::test
