// The commands of the program. Each returns the exit code (0, or 130 after Ctrl-C) and throws tactic::Error.
#pragma once

#include <cstdint>
#include <string>

#include "session.h"

namespace tactic::program {

constexpr int kInterruptedExit = 130;

struct RunOptions {
  SessionOptions session;
  bool compare = false;
  int rounds = 2;  // of a comparison
  float temperature = 0;
  std::uint32_t seed = 0;
  std::string json;
};
int run(const RunOptions& options);

}  // namespace tactic::program
