// Settings of the plug-in by name: from the environment (TACTIC_MASS=0.9) and from the program (set("mass", "0.9")).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/options.h"

namespace tactic::llama {

enum class Mode { tactic, paper, full, stock };  // stock: hooks stay, the engine computes its own attention

class Settings {
 public:
  // Reads TACTIC_<NAME> for every name. A bad value leaves the default and adds a line to `complaints`.
  static Settings from_environment(std::vector<std::string>& complaints);

  // Throws Error(invalid_argument) that names the setting, the value and the range; the settings stay as they were.
  void set(const std::string& name, const std::string& value);
  std::optional<std::string> get(const std::string& name) const;

  Mode mode() const { return mode_; }
  // Of the pipeline last chosen (tactic or paper: its own defaults, then what was set by name), also in modes full and stock,
  // so that going there and back keeps the index.
  const Options& options() const { return options_; }
  int log() const { return log_; }
  int max_rows() const { return max_rows_; }
  bool huge_pages() const { return huge_pages_; }           // ask for huge pages behind the engine's cache
  std::uint64_t generation() const { return generation_; }  // grows with every change

  static constexpr int kMaxRows = 16;

 private:
  void resolve();

  Mode mode_ = Mode::tactic;
  bool paper_ = false;                         // the pipeline that mode full and stock return to
  std::map<std::string, std::string> chosen_;  // options set by name
  Options options_;
  int log_ = 0;
  // Rows of one sequence in a decode node (speculative verification): computed one after the other, so beyond a few the
  // engine's own kernel, which shares K and V between rows, is faster.
  int max_rows_ = 8;
  bool huge_pages_ = true;
  std::uint64_t generation_ = 1;
};

}  // namespace tactic::llama
