// Options of tactic eval.
#include "eval_arguments.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "arguments.h"
#include "eval.h"

namespace tactic::program {
namespace {

std::string check_each_mass(const std::string& text) {
  double mass = 0;
  if (!CLI::detail::lexical_cast(text, mass) || !(mass > 0 && mass <= 1)) return "must be in (0, 1], not " + text;
  return "";
}

void add_experiment_options(CLI::App* command, EvalOptions& options) {
  command->add_option("-m,--model", options.model, "model file (GGUF)");
  command->add_option("-f,--text", options.texts, "text file in UTF-8; several: windows of each; ruler: the haystack");
  command->add_option("-o,--output", options.output, "folder of the results; finished samples in it are not measured again")
      ->capture_default_str();
  command->add_option("--data", options.data, "folder of LongBench's files (NAME.jsonl), or of SQuAD's and HotpotQA's");
  command->add_option("--csv", options.csv, "file of the GPU benchmark, for experiments about its speed");
  command->add_option("-c,--context", options.context, "tokens of a prompt; 0: the experiment's")->check(CLI::Range(0, 1 << 26));
  command->add_option("-s,--steps", options.steps, "decode steps of a window; 0: the experiment's")
      ->check(CLI::Range(0, 1 << 16));
  command->add_option("-w,--windows", options.windows, "windows of each text; 0: the experiment's")
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("-n,--samples", options.samples, "samples of each task; 0: the experiment's")
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--tasks", options.tasks, "only these tasks")->delimiter(',');
  command
      ->add_option("--protocol", options.protocol,
                   "A: the whole prompt densely; B: the context densely, question and answer sparsely")
      ->check(CLI::IsMember({"A", "B"}));
  command->add_option("-p,--mass", options.changes.masses, "P of the arms that have one, instead of the experiment's")
      ->delimiter(',')
      ->check(CLI::Validator(check_each_mass, "(0, 1]"));
  command->add_option("--methods", options.changes.methods, "only arms of these methods (and those that set their budgets)")
      ->delimiter(',');
  command->add_option("--set", options.changes.settings, "NAME=VALUE: a setting of docs/llama.md for every arm");
  command->add_option_function<std::uint64_t>(
      "--seed",
      [&options](std::uint64_t seed) {
        options.seed = seed;
        options.has_seed = true;
      },
      "of generated samples");
  command->add_option("-t,--threads", options.threads, "threads; 0: one per core")->check(CLI::Range(0, 1024));
  command->add_option("--cache", options.cache, "folder that keeps read prompts (default: the user's cache folder)");
  command->add_flag("!--no-cache", options.keep_prompts, "do not keep read prompts");
  command->add_flag("--list", options.list, "show what would be measured, and stop");
  command->add_flag("-v,--verbose", options.verbose, "show the engine's own log");
}

CLI::App* add_eval(CLI::App& program, EvalOptions& options, ReportOptions& report) {
  CLI::App* command = program.add_subcommand("eval", "the paper's experiments on your model and text");
  command->require_subcommand(1);
  for (const eval::BuiltIn& known : eval::built_in_experiments()) {
    const auto json = eval::Json::parse(known.text, nullptr, false);
    const std::string paper = json.value("paper", "");
    CLI::App* experiment =
        command->add_subcommand(known.name, json.value("title", "") + (paper.empty() ? "" : " (" + paper + ")"));
    add_experiment_options(experiment, options);
    experiment->callback([&options, name = known.name] { options.experiment = name; });
    experiment->footer(json.value("about", ""));
  }
  CLI::App* own = command->add_subcommand("run", "an experiment of your own: a file as in eval/experiments");
  own->add_option("experiment", options.experiment, "file that ends with .json")->required()->check(CLI::ExistingFile);
  add_experiment_options(own, options);
  CLI::App* page = command->add_subcommand("report", "tables and plots of a results folder as one page");
  page->add_option("folder", report.folder, "folder given to --output")->required();
  page->add_option("-o,--output", report.output, "page to write")->capture_default_str();
  command->footer(
      "Samples are kept as they finish: Ctrl-C at any time, and the same command goes on.\n"
      "Examples:\n"
      "  tactic eval fig9 -m model.gguf -f book.txt -f other.txt -w 8 -o results\n"
      "  tactic eval table4 -m model.gguf -f essays.txt -c 4096 -n 50 -o results\n"
      "  tactic eval report results -o report.html");
  return command;
}

}  // namespace

int parse_and_run_eval(int count, const char* const* arguments) {
  CLI::App program("Answers from long documents with adaptive sparse attention.", "tactic");
  program.require_subcommand(1);
  EvalOptions options;
  ReportOptions report;
  const CLI::App* const command = add_eval(program, options, report);
  try {
    program.parse(count, arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);  // --help
    fmt::print(stderr, "tactic: {}: see tactic eval --help\n", error.what());
    return kUsageExit;
  }
  return command->got_subcommand("report") ? eval_report(report) : eval_command(options);
}

}  // namespace tactic::program
