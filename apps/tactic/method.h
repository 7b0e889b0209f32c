// The attention that the user asks for.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "baselines/baselines.h"
#include "core/options.h"

namespace tactic::program {

// What --method, --mass, --goal, --promise, --cluster-size and the options of budgets ask for.
struct MethodOptions {
  std::string method = "tactic";  // tactic, paper, full, stock, or a baseline
  double mass = 0.9;
  std::string goal = "error";                        // error, mass: of tactic
  bool promise = false;                              // of tactic; its goal is then mass
  int cluster_size = 0;                              // 0: the method's own
  std::map<std::string, std::string> settings = {};  // of the plug-in by name: budget, sharing, dense_layers, ...

  std::optional<Baseline> baseline() const { return baseline_named(method); }

  const char* used_goal() const { return method == "tactic" && !promise && goal == "error" ? "error" : "mass"; }
};

// The library's options for it. Throws Error(invalid_argument).
Options options_for(const MethodOptions& wanted);
// Tokens of a further segment for clusters of this size: at least 16 clusters' (validate() of core/options.h), else `usual`.
int recluster_tokens_for(int cluster_size, int usual);

}  // namespace tactic::program
