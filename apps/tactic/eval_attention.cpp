// Experiments about attention itself, on exact weights of captured windows: Table 1, Figures 2, 4, 6 and 7.
#include "eval_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/error.h"
#include "eval.h"
#include "eval_windows.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

namespace {

using Measure = Json (*)(EvalRun&, const WindowAttention&, std::span<const Arm* const>);

const std::map<std::string, Measure>& measures() {
  static const std::map<std::string, Measure> kMeasures = {
      {"budgets", measure_budgets},   {"values", measure_values}, {"sparsity", measure_sparsity},
      {"grouping", measure_grouping}, {"fit", measure_fit},
  };
  return kMeasures;
}

Json config_of(const EvalRun& run, const Arm& arm, const Window& window) {
  Json config = run.config_of(arm, 0);
  describe(window, config);
  config["tokens"] = hash_of(window);
  return config;
}

// All arms of a window share its capture and its exact weights: they are measured together.
void measure_window(EvalRun& run, const Window& window, Measure measure) {
  std::vector<const Arm*> missing;
  for (const Arm& arm : run.arms()) {
    if (run.journal().find(eval::Journal::key_of(config_of(run, arm, window))) == nullptr) missing.push_back(&arm);
  }
  const std::size_t kept = run.arms().size() - missing.size();
  for (std::size_t i = 0; i < kept; ++i) run.done(false, "");
  if (missing.empty()) return;
  const WindowAttention attention = capture_window(run.engine(), window);
  const Json results = measure(run, attention, missing);
  for (std::size_t i = 0; i < missing.size(); ++i) {
    run.keep(config_of(run, *missing[i], window), results[i]);
    run.done(true, fmt::format("{} {}: {}", window.text, window.number, missing[i]->label));
  }
}

}  // namespace

void run_attention(EvalRun& run) {
  const auto found = measures().find(run.spec().measure);
  if (found == measures().end()) {
    throw Error(Status::corrupt,
                fmt::format("experiment {}: field measure is '{}', must be budgets, values, sparsity, grouping or fit",
                            run.spec().name, run.spec().measure));
  }
  for (const Window& window : run.open_windows()) measure_window(run, window, found->second);
}

}  // namespace tactic::program
