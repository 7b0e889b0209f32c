// Keys, values and queries that behave like captured ones, made on the device: apps/tactic/synthetic.cpp's model for batches of
// long contexts, where the CPU would need hours.
#pragma once

#include <cstdint>
#include <vector>

#include "apps/tactic/synthetic.h"
#include "cases.h"
#include "harness.h"

namespace tactic::bench::gpu {

constexpr int kQueryRows = 32;  // of each sequence, as of consecutive tokens at its end; the last one is the step's

// Queries of all layers, for K and V that were written into a case.
struct SyntheticQueries {
  DeviceArray<float> rows;           // [layers, batch, kQueryRows, q_heads, head_dim]
  DeviceArray<std::uint16_t> steps;  // [layers, batch, q_heads, head_dim] bf16: the last rows

  const std::uint16_t* step(const Case& c, int layer) const {
    return steps.data() + std::int64_t{layer} * c.batch * c.q_heads * c.head_dim;
  }
};

// Fills K and V of the case's layers. The sequences of a batch share the model (directions, tastes of the heads) of each layer
// and tell different stories. tests: statistics as in KeyStatistics.
SyntheticQueries fill_synthetic(const Case& c, const program::KeyStatistics& statistics, std::uint64_t seed);

// Factors of the query metric (cluster/cluster.h) of every layer and KV head from the queries of its first sequence:
// [layers, kv_heads, head_dim, head_dim] f32.
DeviceArray<float> query_metrics(const Case& c, const SyntheticQueries& queries, float shrinkage);

}  // namespace tactic::bench::gpu
