// Options of the program: what they mean, their ranges, their help.
#pragma once

namespace tactic::program {

constexpr int kRuntimeExit = 1;
constexpr int kUsageExit = 2;

// The whole program but for its signal handlers. Returns the exit code; every failure is one line on stderr.
int parse_and_run(int count, const char* const* arguments);

}  // namespace tactic::program
