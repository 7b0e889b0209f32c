// Measures of captured windows. Each returns one result an arm.
#pragma once

#include <span>

#include "eval/spec.h"
#include "eval_capture.h"

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

}  // namespace tactic::program
