// Keys, values and queries that behave like captured ones, for shapes and lengths that no model at hand has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/team.h"
#include "core/types.h"

namespace tactic::program {

// What is imitated, with the medians measured over every 4th layer of captures of SmolLM2-135M (7,464 tokens of the Jargon File,
// head dim 64). Standard deviations are over tokens.
struct KeyStatistics {
  double offset = 0.78;          // |mean key| / deviation of the keys (root of the total variance)
  double spectrum_slope = 0.86;  // eigenvalues of the keys' covariance fall as rank^-slope
  double logit_deviation = 3.5;  // of a head's logits; between KV heads it varies with...
  double logit_spread = 0.25;    // ... this deviation of its logarithm
  // Autocorrelation of the logits over 1, 8, 64, 512 tokens: .76 .58 .49 .25. Made of parts of the variance: what a token's own
  // kind decides, and what persists for about 4, 30 and 800 tokens.
  double kind_part = 0.24, phrase_part = 0.18, passage_part = 0.10, topic_part = 0.48;
  double sink_mass = 0.30;    // of the first token
  double recent_mass = 0.19;  // of the last 64
};

struct SyntheticSpec {
  Shape shape;
  std::int64_t tokens = 0;
  int queries = 128;  // query rows, as of so many consecutive tokens at the end
  std::uint64_t seed = 1;
  KeyStatistics statistics;
};

// One layer.
struct SyntheticLayer {
  std::vector<std::uint16_t> k, v;  // f16 [tokens, kv_heads, dim]: llama.cpp's cache
  std::vector<float> q;             // [queries, q_heads, head_dim]
};
SyntheticLayer make_layer(const SyntheticSpec& spec, Team& team);

// The same statistics measured on a layer, as a line of text.
std::string describe(const SyntheticSpec& spec, const SyntheticLayer& layer);

}  // namespace tactic::program
