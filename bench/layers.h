// Synthetic layers for bench_layer: keys around topics, queries that look at some of them, clusters over the keys.
//
// One topic for 64 tokens of context, in runs of 8 tokens, as captured keys lie around what a text is about. Keys fitted to
// captured statistics, and captured ones, are what `tactic bench attention` measures on.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/limits.h"
#include "decode/decode.h"

namespace tactic::bench {

struct Case {
  std::string name;
  Shape shape;
  std::int64_t tokens = 0;
  int layers = 0;
  double share = 0;  // wanted; 0: as it comes
};

// K and V of some layers in llama.cpp's layout [token][kv_head][dim], f16, with their indexes and queries.
class Layers {
 public:
  Layers(const Case& c, Team& team);

  KvView view(int layer) const;
  Query query(int layer, int step) const;
  const LayerIndex& index(int layer) const { return indexes_[static_cast<std::size_t>(layer)]; }
  int count() const { return case_.layers; }
  double layer_bytes() const { return 4.0 * case_.shape.kv_heads * case_.shape.head_dim * static_cast<double>(case_.tokens); }
  void scale_queries(float factor) {
    for (float& x : q_) x *= factor;
  }

  static constexpr int kSteps = 8;  // queries of a layer

 private:
  std::byte* at(int layer, bool v, std::int64_t token, int head);
  void fill();
  void build(Team& team);

  Case case_;
  Pages pages_;
  std::vector<float> q_;  // [layers, kSteps, q_heads, head_dim]
  std::vector<LayerIndex> indexes_;
};

}  // namespace tactic::bench
