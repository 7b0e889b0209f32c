// What every backend's build_segment() shares: the random start, repair of empty clusters, the order of tokens, quantised rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "cluster/cluster.h"

namespace tactic {

// C = max(1, round(n / cluster_size)).
int cluster_count(std::int64_t tokens, int cluster_size);
// How many of C clusters are drawn at the start; the others are placed on outliers before the last assignment.
int drawn_count(int clusters, const ClusterOptions& options);

// Word `counter` of the stream `key`: SplitMix64's finaliser (Steele, Lea, Flood 2014).
constexpr std::uint64_t random_word(std::uint64_t key, std::uint64_t counter) {
  std::uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Distinct tokens, drawn evenly from 0 .. permutation.size() - 1, into permutation[0 .. count). Integer arithmetic on a counter:
// the same on every platform, for every team and backend. Cost: permutation.size() writes, count draws.
void draw_tokens(std::uint64_t seed, int kv_head, int count, std::span<std::int32_t> permutation);

// sizes [C]: how many tokens each cluster holds.
void count_sizes(std::span<const std::int32_t> nearest, std::span<std::int32_t> sizes);

// Gives each empty cluster, in ascending order, the token farthest from its centroid (the lowest of equally far ones) among
// clusters that hold more than one: a move to distance 0, so that the objective falls. Changes nearest [n] and sizes [C];
// distance [n]; scratch [n]. Returns how many it moved. Needs n >= C. Cost: C when none is empty, else n + moved * log n.
int repair_empty(std::span<std::int32_t> nearest, std::span<std::int32_t> sizes, std::span<const float> distance,
                 std::span<std::int32_t> scratch);

// order [n]: tokens by cluster, ascending inside one; begin [C + 1]; cursor [C] is scratch.
void order_tokens(std::span<const std::int32_t> nearest, std::span<const std::int32_t> sizes, std::span<std::int32_t> order,
                  std::span<std::int32_t> begin, std::span<std::int32_t> cursor);

// out = round(row / scale), scale = max |row| / 127 (0 for a row of zeros): |row - scale * out| <= scale / 2.
void quantise_row(std::span<const float> row, std::int8_t* out, float* scale);
// Centroid c into int8 or f16, whichever the clusters hold. Beyond f16's range the value saturates at 65504.
void store_centroid(HeadClusters& clusters, int c, std::span<const float> mean);

// A segment with all arrays sized for its C and none filled.
std::shared_ptr<Segment> allocate_segment(const KvView& kv, std::int64_t first, std::int64_t last, const ClusterOptions& options);

// mean_spread from spread and begin.
float mean_spread(const HeadClusters& clusters);

// Throws Error(non_finite) that names the first token and KV head whose K or V row holds NaN or infinity, or, when no element
// does, says that sums of K or V overflow.
[[noreturn]] void throw_non_finite(const KvView& kv, std::int64_t first, std::int64_t last);

}  // namespace tactic
