// Promise mode: a margin for each KV head, probed with real queries (estimation.md 6).
#pragma once

#include <vector>

#include "decode/decode.h"

namespace tactic {

// Queries [count, q_heads, head_dim], unscaled.
struct Probes {
  const float* q = nullptr;
  int count = 0;
};

// Per KV head the largest rho of {1, .7, .5, .35, .25, .15, .08, .04} with which at least 95% of (probe, query head) reach
// options.mass of their true mass when the internal target is 1 - rho (1 - mass); -1 where none does: the head runs dense.
// No probes: all 1. Cost: `count` dense reads of K, and up to 8 sparse steps a probe. Allocates: not for a warm step.
std::vector<float> probe_margins(Team& team, Workspace& workspace, const Shape& shape, const AttentionParams& params,
                                 const Probes& probes, const KvView& kv, const LayerIndex& index, const Options& options);

}  // namespace tactic
