// What a method attends to on a capture: budgets, attended tokens, true mass.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "capture.h"
#include "core/options.h"

namespace tactic::program {

// One query head in one layer at one step.
struct HeadStep {
  int layer = 0;
  int head = 0;  // query head
  int step = 0;
  std::int64_t context = 0;   // tokens in the context
  std::int64_t attended = 0;  // tokens its KV head attended
  std::int64_t budget = 0;    // tokens the head alone would take
  double estimated_mass = 0;  // share of the mass that the method believes it reached
  double true_mass = 0;       // share of the exact softmax mass (double) on the attended tokens
};

constexpr int kPlaces = 64;  // pieces of the context that attended tokens are counted in

struct Inspection {
  CaptureInfo info;
  Options options;
  std::vector<HeadStep> rows;       // by layer, step, head
  std::vector<double> place_share;  // [layers, kPlaces] share of a piece's tokens that was attended, mean over steps and KV heads
  std::vector<float> margin;        // [layers, kv_heads] of promise mode: < 0 the head attends to everything; else empty
  double cluster_seconds = 0;

  // Of one row; 1 outside promise mode.
  float margin_of(const HeadStep& row) const;
};

// Mean, or share of successes, over the rows of one head or layer.
struct HeadSummary {
  double attended_share = 0;
  double attended = 0;
  double budget = 0;
  double estimated_mass = 0;
  double true_mass = 0;
  double worst_mass = 1;
  double success = 0;  // share of rows with true mass >= P
  std::int64_t count = 0;
};

// Throws Error or Interrupted.
Inspection inspect(const Capture& capture, const Options& options, int threads);

// What promise mode gave the KV heads.
struct PromiseSummary {
  int heads = 0;
  int dense = 0;           // attend to everything
  int with_margin = 0;     // aim higher than P
  double mean_margin = 0;  // over those that are not dense; 1: P itself
};
// layer < 0: all.
PromiseSummary summarise_promise(const Inspection& inspection, int layer);

// layer or head < 0: all.
HeadSummary summarise(const Inspection& inspection, int layer, int head);

std::string csv_of(const Inspection& inspection);
std::string page_of(const Inspection& inspection);

}  // namespace tactic::program
