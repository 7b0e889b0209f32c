// Options of tactic eval.
#pragma once

namespace tactic::program {

// The command eval with its arguments (those of the whole program). Returns the exit code; throws Error or Interrupted.
int parse_and_run_eval(int count, const char* const* arguments);

}  // namespace tactic::program
