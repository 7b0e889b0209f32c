// What a session is asked for.
#pragma once

#include <string>

#include "document.h"
#include "method.h"

namespace tactic::program {

struct SessionOptions {
  std::string model;
  std::string file;
  std::string question;
  int tokens = 128;  // of the answer
  MethodOptions method;
  Truncate truncate = Truncate::none;
  int context = 0;  // most tokens of prompt and answer; 0: all that the model has
  int threads = 0;  // 0: one per core
  bool use_cache = true;
  std::string cache;   // folder; empty: the default one
  bool plugin = true;  // load it: not needed for the engine's own attention alone
  bool verbose = false;
};

}  // namespace tactic::program
