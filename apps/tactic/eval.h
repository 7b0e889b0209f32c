// tactic eval: experiments on a real model, every finished sample kept.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "eval/journal.h"
#include "eval/spec.h"
#include "eval_engine.h"
#include "eval_windows.h"
#include "progress.h"

namespace tactic::program {

struct EvalOptions {
  std::string experiment;  // a built-in name, or a file that ends with .json
  std::string output = "eval-results";
  std::string model;
  std::vector<std::string> texts;  // of windows; the haystack of ruler tasks
  std::string data;                // folder of LongBench, or of SQuAD and HotpotQA files
  std::string csv;                 // measured elsewhere (bench/gpu)
  int context = 0;                 // 0: the experiment's own, as for all below
  int steps = 0;
  int windows = 0;
  int samples = 0;
  std::vector<std::string> tasks;
  std::string protocol;
  eval::SpecChanges changes;
  std::uint64_t seed = 0;
  bool has_seed = false;
  int threads = 0;
  std::string cache;
  bool keep_prompts = true;
  bool list = false;  // show what would be measured and stop
  bool verbose = false;
};
int eval_command(const EvalOptions& options);

struct ReportOptions {
  std::string folder;
  std::string output = "report.html";
};
int eval_report(const ReportOptions& options);

// One run of an experiment: the specification with the user's changes, the engine, the journal, progress over all samples.
class EvalRun {
 public:
  EvalRun(const EvalOptions& options, eval::Spec spec);

  const EvalOptions& options() const { return options_; }
  const eval::Spec& spec() const { return spec_; }
  // A number of the experiment's settings that an option may replace.
  int number(const char* name, int replaced) const;
  std::string text(const char* name, const std::string& replaced) const;

  // Loads the model for `context` tokens, writes the run's line (machine, versions, settings), leaves out arms whose method the
  // plug-in lacks (one line on stderr each).
  void open(int context);
  // open() for the experiment's windows of context and steps, which it makes and expects a sample of every arm in.
  std::vector<Window> open_windows();
  EvalEngine& engine() { return *engine_; }
  const std::vector<eval::Arm>& arms() const { return arms_; }
  eval::Journal& journal() { return *journal_; }

  // What every sample's configuration begins with: format, model, arm with its budget.
  eval::Json config_of(const eval::Arm& arm, double budget) const;
  // Into the journal, with the build that measured it. Returns what is kept.
  const eval::Json& keep(const eval::Json& config, eval::Json result);
  // The budget of a fixed-budget arm: the mean of its source among `results` (by label), rounded; 0 without one.
  static double budget_of(const eval::Arm& arm, const std::map<std::string, eval::Json>& results);

  // Progress over samples: how many there are, and that one was measured or was there already.
  void expect(std::size_t samples) { expected_ = samples; }
  void done(bool measured, const std::string& what);
  void finish() const;

 private:
  eval::Json describe_run() const;

  const EvalOptions& options_;
  eval::Spec spec_;
  std::vector<eval::Arm> arms_;
  std::optional<EvalEngine> engine_;
  std::optional<eval::Journal> journal_;
  std::size_t expected_ = 0, done_ = 0, measured_ = 0;
  Clock::time_point start_ = Clock::now();
};

// The runners, by kind. Throw Error or Interrupted; finished samples are in the journal.
void run_closeness(EvalRun& run);
void run_attention(EvalRun& run);
void run_ruler(EvalRun& run);
void run_longbench(EvalRun& run);
void run_speed(EvalRun& run);

eval::Json json_of(const Attended& attended);

}  // namespace tactic::program
