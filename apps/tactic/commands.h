// The commands of the program. Each returns the exit code (0, or 130 after Ctrl-C) and throws tactic::Error.
#pragma once

#include <cstdint>
#include <string>

#include "capture.h"
#include "session_options.h"
#include "workload.h"

namespace tactic::program {

constexpr int kInterruptedExit = 130;

struct RunOptions {
  SessionOptions session;
  bool compare = false;
  int rounds = 2;  // of a comparison
  float temperature = 0;
  std::uint32_t seed = 0;
  std::string json;
  std::string save_budgets;
};
int run(const RunOptions& options);

struct CaptureOptions {
  RecordOptions record;
  std::string output;
  std::string json;
};
int capture(const CaptureOptions& options);

struct InspectOptions {
  std::string capture;   // a file; empty: a live run of `record`
  RecordOptions record;  // its threads also serve a file
  MethodOptions method;
  std::string csv;
  std::string html;
  std::string json;
};
int inspect_command(const InspectOptions& options);

struct BenchOptions {
  std::string keys = "synthetic";  // or a capture's file, whose shape and length then count
  WorkloadSpec workload;
  MethodOptions method;
  double share = 0;  // steer the attended share to this; 0: as the keys have it
  int threads = 0;
  int rounds = 20;
  std::string json;
};
int bench_attention(const BenchOptions& options);

}  // namespace tactic::program
