// One text through five kinds of attention: speed, and distance from the engine's own.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "session.h"

namespace tactic::program {

struct CompareOptions {
  int tokens = 128;
  int rounds = 2;
  MethodOptions method;  // mass and cluster size for tactic and paper; the method that the main figures are of
};

// The context holds the whole prompt. The likeliest tokens under stock attention with -fa on (never one that ends the answer)
// are forced through: stock -fa on, stock -fa off, full, tactic, paper, and the method if it is a baseline. Rounds alternate the
// order, and a step's time is its best over the rounds. Adds the figures to `json` and prints a table. False: interrupted.
bool compare(Session& session, const CompareOptions& options, nlohmann::ordered_json& json);

}  // namespace tactic::program
