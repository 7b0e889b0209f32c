// Options of the program: what they mean, their ranges, their help.
#pragma once

#include <string>
#include <variant>

#include "commands.h"

namespace tactic::program {

constexpr int kRuntimeExit = 1;
constexpr int kUsageExit = 2;

// What the arguments ask for.
struct Request {
  std::variant<std::monostate, RunOptions, CaptureOptions, InspectOptions, BenchOptions> command;
  // Without a command: help or version for stdout and exit code 0, or one line for stderr and kUsageExit.
  std::string text;
  int exit_code = 0;
};

// Looks at nothing but its arguments and the environment.
Request parse(int count, const char* const* arguments);

// The whole program but for its signal handlers. Returns the exit code; every failure is one line on stderr.
int parse_and_run(int count, const char* const* arguments);

}  // namespace tactic::program
