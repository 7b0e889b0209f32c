// The options of Tactic: one struct; every field says meaning, range and cost.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace tactic {

// The space in which k-means measures distance between keys.
enum class Metric : std::int32_t {
  query = 0,     // E over recent queries of (q.k - q.c)^2, averaged over coming rotary turns; needs observed queries
  diagonal = 1,  // the diagonal of it, equal inside a rotary pair; for an unknown rotary layout
  l2 = 2,        // the paper's
};

// What `tactic` spends rows for.
enum class Goal : std::int32_t {
  mass = 0,  // every query head attends to tokens that hold P of its mass
  // The output errs about as little as if P of the mass were attended: clusters whose mean V stands for them well are not read.
  error = 1,
};

struct Options {
  Method method = Method::tactic;
  // P, the share of the attention mass to reach, in (0, 1]. 1 attends to every token. Cost grows about as -log(1 - P).
  float mass = 0.9f;

  // ---- clustering (paper 4.2) ----
  int cluster_size = 32;  // mean tokens a cluster holds, 2 .. 4096; metadata read per step is 0.27 * tokens / cluster_size rows
  int iterations = 3;     // of k-means, 1 .. 100; estimation.md 4: ten in L2 are no better than three in the query metric
  // Share of the clusters that outliers begin, 0 .. 0.5: before the last assignment of k-means they are placed on the tokens
  // farthest from their centroid. Ours: such a token, with others like it, is else lost among unlike ones, and its mass with it.
  float outlier_share = 0.1f;  // RULER niah_single_1 at 4K, SmolLM2-135M: 15 of 17 answers with 0, all 17 with 0.1
  int segment_tokens =
      0;  // tokens a segment of the prompt holds; 0: the whole prompt is one. k-means costs n^2 / cluster_size inside one
  Metric metric = Metric::query;
  float shrinkage = 0.1f;      // of the query moment towards the identity, 0 .. 1 (estimation.md 2: 2% to 30% make no difference)
  bool int8_centroids = true;  // else f16: twice the bytes
  std::uint64_t seed = 0x7ac71c;

  // ---- always attended, not clustered ----
  int sink_tokens = 4;          // first tokens of the sequence, 0 .. 1024
  int recent_tokens = 64;       // newest tokens that are never clustered, 0 .. 65536
  int recluster_tokens = 2048;  // generated tokens that make a further segment (paper 4.3), >= 16 * cluster_size
  int min_context = 1024;       // shorter contexts run dense: there is nothing to win

  // ---- choosing, `tactic` (estimation.md 2) ----
  Goal goal = Goal::error;  // promise keeps a promise about mass: with it the goal is mass
  bool spread = true;       // log-normal cluster masses by spread; else by centroid alone
  bool joint = true;        // choose for the G heads at once by the lambda rule; else each for itself, then the union
  bool verify = true;       // correct the estimates by what was attended and extend once
  bool tail_factor = true;  // scale the estimates of the rest by exact / estimated of the faintest chosen; only with verify
  int tail_clusters = 512;  // most dropped clusters that join by their mean V, where worth its bytes, 0 .. 65536; 0: none
  bool promise = false;     // probe each KV head near the prompt's end and give badly clustered ones a margin, or run them dense

  // ---- choosing, `paper` (Algorithm 1) ----
  float fit_head = 0.02f;    // share of tokens, first in order, whose weights are exact, 0 .. 1
  float fit_window = 0.01f;  // share of tokens in each of the two windows
  float fit_first = 0.10f;   // place of the first window in the order, as a share of the tokens
  float fit_second = 0.60f;  // place of the second
};

// The paper's settings: L2, 10 iterations, f16 centroids, one segment.
Options paper_options();

// Throws Error(invalid_argument) with field, value and range when a value is out of its range.
void validate(const Options& options);
// The same for a shape: head_dim and v_head_dim in {64, 80, 96, 128, 256}, group 1 .. 16, q_heads a multiple of kv_heads.
void validate(const Shape& shape);

}  // namespace tactic
