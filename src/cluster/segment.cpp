#include "cluster/segment.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <string>

#include "core/error.h"
#include "core/half.h"

namespace tactic {
namespace {

// Adding and subtracting it rounds a float below 2^22 to the nearest integer, ties to even, without a call into libm.
constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23
constexpr float kMaxHalf = 65504.0f;

bool row_is_finite(const std::byte* row, const Rows& rows) {
  for (int i = 0; i < rows.dim; ++i) {
    if (!std::isfinite(load_element(row, rows.type, static_cast<std::size_t>(i)))) return false;
  }
  return true;
}

}  // namespace

int cluster_count(std::int64_t tokens, int cluster_size) {
  return static_cast<int>(std::max<std::int64_t>(1, (2 * tokens + cluster_size) / (2 * static_cast<std::int64_t>(cluster_size))));
}

int drawn_count(int clusters, const ClusterOptions& options) {
  if (options.iterations == 0) return clusters;  // the only assignment has none before it
  return clusters - static_cast<int>(static_cast<double>(options.outlier_share) * clusters);
}

void draw_tokens(std::uint64_t seed, int kv_head, int count, std::span<std::int32_t> permutation) {
  const std::uint64_t key = random_word(seed, static_cast<std::uint64_t>(kv_head));
  std::iota(permutation.begin(), permutation.end(), 0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    // The high half of 32 random bits times m: even to within m / 2^32.
    const std::uint64_t m = permutation.size() - i;
    const std::uint64_t draw = ((random_word(key, i) >> 32) * m) >> 32;
    std::swap(permutation[i], permutation[i + draw]);
  }
}

void count_sizes(std::span<const std::int32_t> nearest, std::span<std::int32_t> sizes) {
  std::fill(sizes.begin(), sizes.end(), 0);
  for (const std::int32_t c : nearest) ++sizes[static_cast<std::size_t>(c)];
}

int repair_empty(std::span<std::int32_t> nearest, std::span<std::int32_t> sizes, std::span<const float> distance,
                 std::span<std::int32_t> scratch) {
  if (std::find(sizes.begin(), sizes.end(), 0) == sizes.end()) return 0;
  // A heap with the farthest token on top, the lowest of equal ones first.
  const auto nearer = [&](std::int32_t a, std::int32_t b) {
    const float da = distance[static_cast<std::size_t>(a)];
    const float db = distance[static_cast<std::size_t>(b)];
    return da < db || (da == db && a > b);
  };
  std::iota(scratch.begin(), scratch.end(), 0);
  std::make_heap(scratch.begin(), scratch.end(), nearer);
  auto end = scratch.end();
  int moved = 0;
  for (std::size_t c = 0; c < sizes.size(); ++c) {
    if (sizes[c] != 0) continue;
    // A cluster of one stays so, hence a token passed over once need not be looked at again; n >= C leaves enough others.
    for (bool found = false; !found;) {
      assert(end != scratch.begin());
      std::pop_heap(scratch.begin(), end, nearer);
      const auto token = static_cast<std::size_t>(*--end);
      const auto from = static_cast<std::size_t>(nearest[token]);
      if (sizes[from] < 2) continue;
      --sizes[from];
      sizes[c] = 1;
      nearest[token] = static_cast<std::int32_t>(c);
      ++moved;
      found = true;
    }
  }
  return moved;
}

void order_tokens(std::span<const std::int32_t> nearest, std::span<const std::int32_t> sizes, std::span<std::int32_t> order,
                  std::span<std::int32_t> begin, std::span<std::int32_t> cursor) {
  begin[0] = 0;
  for (std::size_t c = 0; c < sizes.size(); ++c) {
    cursor[c] = begin[c];
    begin[c + 1] = begin[c] + sizes[c];
  }
  for (std::size_t i = 0; i < nearest.size(); ++i) {
    order[static_cast<std::size_t>(cursor[static_cast<std::size_t>(nearest[i])]++)] = static_cast<std::int32_t>(i);
  }
}

void quantise_row(std::span<const float> row, std::int8_t* out, float* scale) {
  float largest = 0;
  for (const float x : row) largest = std::max(largest, std::fabs(x));
  *scale = largest / 127.0f;
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  if (!std::isfinite(inverse)) {  // max |row| is subnormal: nothing that a product could see
    *scale = 0;
    std::fill_n(out, row.size(), std::int8_t{0});
    return;
  }
  for (std::size_t i = 0; i < row.size(); ++i) {
    out[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(row[i] * inverse + kRoundMagic - kRoundMagic));
  }
}

void store_centroid(HeadClusters& clusters, int c, std::span<const float> mean) {
  const std::size_t at = static_cast<std::size_t>(c) * mean.size();
  if (!clusters.centroid8.empty()) {
    quantise_row(mean, clusters.centroid8.data() + at, clusters.centroid_scale.data() + c);
    return;
  }
  for (std::size_t i = 0; i < mean.size(); ++i) {
    clusters.centroid16[at + i] = float_to_half(std::clamp(mean[i], -kMaxHalf, kMaxHalf));
  }
}

std::shared_ptr<Segment> allocate_segment(const KvView& kv, std::int64_t first, std::int64_t last,
                                          const ClusterOptions& options) {
  auto segment = std::make_shared<Segment>();
  segment->first = first;
  segment->last = last;
  segment->head_dim = kv.k.dim;
  segment->v_head_dim = kv.v.dim;
  segment->heads.resize(static_cast<std::size_t>(kv.kv_heads));
  const auto n = static_cast<std::size_t>(last - first);
  const auto dim = static_cast<std::size_t>(kv.k.dim);
  for (HeadClusters& head : segment->heads) {
    head.count = cluster_count(last - first, options.cluster_size);
    const auto count = static_cast<std::size_t>(head.count);
    head.tokens.resize(n);
    head.begin.resize(count + 1);
    if (options.int8_centroids) {
      head.centroid8.resize(count * dim);
      head.centroid_scale.resize(count);
    } else {
      head.centroid16.resize(count * dim);
    }
    head.spread.resize(count);
    head.mean_v.resize(count * static_cast<std::size_t>(kv.v.dim));
    head.mean_v_scale.resize(count);
    head.covariance.resize(dim * dim);
  }
  return segment;
}

float mean_spread(const HeadClusters& clusters) {
  double sum = 0;
  for (int c = 0; c < clusters.count; ++c)
    sum += static_cast<double>(clusters.spread[static_cast<std::size_t>(c)]) * clusters.size(c);
  return static_cast<float>(sum / static_cast<double>(clusters.tokens.size()));
}

void throw_non_finite(const KvView& kv, std::int64_t first, std::int64_t last) {
  for (std::int64_t token = first; token < last; ++token) {
    for (int head = 0; head < kv.kv_heads; ++head) {
      for (const Rows* rows : {&kv.k, &kv.v}) {
        if (row_is_finite(row(kv, *rows, token, head), *rows)) continue;
        throw Error(Status::non_finite, std::string(rows == &kv.k ? "K" : "V") + " of token " + std::to_string(token) +
                                            ", KV head " + std::to_string(head) + " holds NaN or infinity");
      }
    }
  }
  throw Error(Status::non_finite, "K or V of tokens " + std::to_string(first) + " to " + std::to_string(last) +
                                      " is finite but so large that sums of squares overflow f32");
}

std::size_t Segment::bytes() const {
  std::size_t total = 0;
  for (const HeadClusters& head : heads) {
    total += head.tokens.bytes() + head.begin.bytes() + head.centroid8.bytes() + head.centroid_scale.bytes() +
             head.centroid16.bytes() + head.spread.bytes() + head.mean_v.bytes() + head.mean_v_scale.bytes() +
             head.covariance.bytes();
  }
  return total;
}

}  // namespace tactic
