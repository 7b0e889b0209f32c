// Keys to measure attention on: synthetic ones or a capture's, several layers in llama.cpp's layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/limits.h"
#include "cluster/cluster.h"
#include "core/team.h"
#include "core/types.h"
#include "core/view.h"
#include "synthetic.h"

namespace tactic::program {

// Layers to attend to in turn, so that none is in a cache when its turn comes.
struct Workload {
  Shape shape;
  AttentionParams params;
  Rotary rotary;
  std::int64_t tokens = 0;
  int queries = 0;  // rows of q of each layer; the first `prompt_queries` shape the metric, the others are timed
  int prompt_queries = 0;
  std::vector<std::vector<float>> q;  // [layers], each [queries, q_heads, head_dim]
  std::vector<bench::Pages> pages;    // [layers], K then V, [tokens, kv_heads, dim]
  std::vector<KvView> kv;             // of the layers
  std::string keys;                   // what they are
};

struct WorkloadSpec {
  int q_heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  std::int64_t context = 32768;
  int layers = 4;
  std::uint64_t seed = 1;
  bool huge_pages = true;  // as the plug-in asks for behind the engine's cache
};

constexpr int kMetricQueries = QueryMoment::kWindow;
constexpr int kTimedQueries = 16;

Workload synthetic_workload(const WorkloadSpec& options, Team& team);
// Throws Error naming the file.
Workload captured_workload(const std::string& path, bool huge_pages);

}  // namespace tactic::program
