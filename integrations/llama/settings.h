// Settings of the plug-in by name: from the environment (TACTIC_MASS=0.9) and from the program (set("mass", "0.9")).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "baseline_settings.h"
#include "core/options.h"

namespace tactic::llama {

enum class Mode {
  tactic,
  paper,
  full,
  stock,  // hooks stay, the engine computes its own attention
  baseline,
};

class Settings {
 public:
  // Reads TACTIC_<NAME> for every name. A bad value leaves the default and adds a line to `complaints`.
  static Settings from_environment(std::vector<std::string>& complaints);

  // Throws Error(invalid_argument) that names the setting, the value and the range; the settings stay as they were.
  void set(const std::string& name, const std::string& value);
  std::optional<std::string> get(const std::string& name) const;

  Mode mode() const { return mode_; }
  // Of the pipeline last chosen (tactic or paper: its own defaults, then what was set by name), also in the other modes,
  // so that going there and back keeps the index.
  const Options& options() const { return options_; }
  // In mode baseline: method, options and budget.
  const BaselineSettings& baseline() const { return baseline_; }
  BaselineOptions baseline_options() const { return baseline_.options(options_.mass); }
  int dense_layers() const { return dense_layers_; }  // first layers that run dense, whatever the method
  // During prefill: sum the weights that tokens receive, which h2o needs.
  bool watches_columns() const { return watch_columns_ || (mode_ == Mode::baseline && baseline_.is(Baseline::h2o)); }
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
  BaselineSettings baseline_;
  int dense_layers_ = 0;
  bool watch_columns_ = false;
  int log_ = 0;
  // Rows of one sequence in a decode node (speculative verification): computed one after the other, so beyond a few the
  // engine's own kernel, which shares K and V between rows, is faster.
  int max_rows_ = 8;
  bool huge_pages_ = true;
  std::uint64_t generation_ = 1;
};

}  // namespace tactic::llama
