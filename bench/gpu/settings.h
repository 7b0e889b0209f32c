// The command line: which part is measured, for which shapes and cells.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tactic::bench::gpu {

struct Heads {
  int q = 32, kv = 8, dim = 128;
};
struct Cell {
  int batch = 1;
  std::int64_t context = 32768;
};

struct Settings {
  std::vector<std::string> parts;
  std::string csv = "tactic.csv";
  int repetitions = 25;
  double pool_gigabytes = 70;  // of K and V that all cases are cut from
  std::vector<Heads> shapes = {{32, 8, 128}};
  std::vector<Cell> cells = {{1, 8192}, {1, 32768}, {1, 65536}, {1, 131072}, {4, 32768}, {8, 32768}, {8, 131072}};
  std::vector<double> shares = {0.025, 0.05, 0.1};
  std::vector<double> masses = {0.9};
  std::vector<int> cluster_sizes = {32};
  std::vector<std::string> methods = {"tactic", "paper"};
};

// Throws std::runtime_error with one line that names the option, its value and what it may be.
Settings parse_settings(int argc, char** argv);
std::string usage();

}  // namespace tactic::bench::gpu
