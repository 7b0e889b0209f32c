// Measures of captured windows. Each returns one result an arm.
#pragma once

#include <span>

#include "eval/spec.h"
#include "eval_capture.h"
#include "sequence/sequence.h"

namespace tactic::program {

class EvalRun;

// Table 1: tokens that exact order, cluster order with exact weights, and the method need for P; mass reached; success.
eval::Json measure_budgets(EvalRun& run, const WindowAttention& window, std::span<const eval::Arm* const> arms);
// Figure 2: norms of V by layer and KV head, the first token apart.
eval::Json measure_values(EvalRun& run, const WindowAttention& window, std::span<const eval::Arm* const> arms);
// Figure 4: fewest tokens that hold P, by head, layer and step.
eval::Json measure_sparsity(EvalRun& run, const WindowAttention& window, std::span<const eval::Arm* const> arms);
// Figure 6: variance of keys that k-means and pages of consecutive tokens explain.
eval::Json measure_grouping(EvalRun& run, const WindowAttention& window, std::span<const eval::Arm* const> arms);
// Figure 7: exact weights in cluster order beside the fitted curve.
eval::Json measure_fit(EvalRun& run, const WindowAttention& window, std::span<const eval::Arm* const> arms);

// ---- shared ----------------------------------------------------------------------------------------------------------

// The clusters of one layer as an arm makes them from the prompt.
class LayerClusters {
 public:
  LayerClusters(const WindowAttention& window, int layer, const Options& options, int threads);
  const Sequence& sequence() const { return sequence_; }
  const LayerIndex& index() const { return sequence_.layer(0); }
  Team& team() { return *team_; }
  Workspace& workspace() { return *workspace_; }

 private:
  std::unique_ptr<Team> team_;
  WorkspacePtr workspace_;
  Sequence sequence_;
};

// Tokens that a step attends without choosing (sinks, recent ones, generated ones), then those of the clusters in the order in
// which the method would take them: `paper` by the centroid's logit, `tactic` by the estimated density.
struct TokenOrder {
  std::vector<std::int32_t> tokens;
  std::int64_t always = 0;             // of `tokens`, first ones
  std::vector<std::int32_t> clusters;  // in that order
  std::vector<std::int64_t> ends;      // place in `tokens` behind each cluster
};

// Fewest leading tokens of an order whose weights reach `wanted`; all if none do.
std::int64_t tokens_for(std::span<const std::int32_t> order, std::span<const double> weights, double wanted);

}  // namespace tactic::program
