// Options of the program: what they mean, their ranges, their help.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <functional>
#include <string>

#include "commands.h"
#include "core/error.h"
#include "interrupt.h"

namespace tactic::program {
namespace {

constexpr int kRuntimeExit = 1;
constexpr int kUsageExit = 2;

std::string check_mass(const std::string& text) {
  double mass = 0;
  if (!CLI::detail::lexical_cast(text, mass) || !(mass > 0 && mass <= 1))
    return "must be in (0, 1], for example 0.9, not " + text;
  return "";
}

void add_model_options(CLI::App* command, SessionOptions& options) {
  command->add_option("-m,--model", options.model, "model file (GGUF)")->required();
  command->add_option("-f,--file", options.file, "document: a text file in UTF-8")->required();
  command->add_option("-t,--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("-v,--verbose", options.verbose, "show the engine's own log");
}

void add_method_options(CLI::App* command, MethodOptions& options, bool with_stock) {
  auto* method = command->add_option("--method", options.method,
                                     "attention of the answer: tactic (as few tokens as reach the mass), paper (the same as "
                                     "published), full (every token, our kernel: lossless)" +
                                         std::string(with_stock ? ", stock (the engine's own)" : ""));
  if (with_stock) {
    method->check(CLI::IsMember({"tactic", "paper", "full", "stock"}));
  } else {
    method->check(CLI::IsMember({"tactic", "paper", "full"}));
  }
  method->capture_default_str();
  command
      ->add_option("-p,--mass", options.mass,
                   "share of the attention mass to reach, in (0, 1]; more costs more, 1 attends to everything")
      ->check(CLI::Validator(check_mass, "(0, 1]"))
      ->capture_default_str();
  command->add_option("--cluster-size", options.cluster_size, "mean tokens a cluster holds; 0: the method's own")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

void add_truncate(CLI::App* command, Truncate& truncate) {
  command
      ->add_option_function<std::string>(
          "--truncate", [&truncate](const std::string& how) { truncate = how == "middle" ? Truncate::middle : Truncate::none; },
          "what to do with a document that is too long: none (an error), middle (leave out its middle)")
      ->check(CLI::IsMember({"none", "middle"}));
}

void add_run(CLI::App& program, RunOptions& options) {
  CLI::App* command = program.add_subcommand("run", "answer a question about a long document");
  add_model_options(command, options.session);
  options.session.question = "What is this text about? Answer in a few sentences.";
  command->add_option("-q,--question", options.session.question, "what to ask about the document")->capture_default_str();
  add_method_options(command, options.session.method, true);
  command->add_option("-n,--tokens", options.session.tokens, "most tokens of the answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--temperature", options.temperature, "of sampling; 0: always the likeliest token")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_option("--seed", options.seed, "of sampling")->capture_default_str();
  command->add_flag("--compare", options.compare,
                    "after the answer, force the same tokens through the engine's attention (-fa on and off), full, tactic and "
                    "paper, and show speed and distance");
  command->add_option("--rounds", options.rounds, "of the comparison; a step's time is its best")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  add_truncate(command, options.session.truncate);
  command->add_option(
      "--cache", options.session.cache,
      "folder that keeps read documents, so that the next question starts at once (default: the user's cache folder)");
  command->add_flag("!--no-cache", options.session.use_cache, "neither keep the document nor look for it");
  command->add_option("--json", options.json, "write the figures to this file");
  command->footer(
      "Examples:\n"
      "  tactic run -m model.gguf -f book.txt -q \"Who is the narrator?\"\n"
      "      reads the book once, keeps it, answers\n"
      "  tactic run -m model.gguf -f book.txt -q \"Where does it end?\" -p 0.75\n"
      "      starts at once: the book is in the cache; faster, a little less exact\n"
      "  tactic run -m model.gguf -f book.txt --compare --json figures.json\n"
      "      how much faster, and how close to full attention\n"
      "Ctrl-C stops the answer, shows the summary and exits with 130.");
}

int guarded(const std::function<int()>& command) {
  try {
    return command();
  } catch (const Interrupted&) {
    fmt::print(stderr, "tactic: interrupted: nothing was kept of what was not finished\n");
    return kInterruptedExit;
  } catch (const Error& error) {
    fmt::print(stderr, "tactic: {}\n", error.what());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "tactic: out of memory: free some, or use a shorter document or a smaller model\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "tactic: {}: this should not happen, please report it\n", error.what());
  }
  return kRuntimeExit;
}

int parse_and_run(int count, char** arguments) {
  CLI::App program("Answers from long documents with adaptive sparse attention.", "tactic");
  program.set_version_flag("--version", TACTIC_VERSION);
  program.require_subcommand(1);
  program.footer("Start with: tactic run --help");
  RunOptions run_options;
  add_run(program, run_options);
  try {
    program.parse(count, arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);  // --help, --version
    const auto chosen = program.get_subcommands();
    const std::string name = chosen.empty() ? "tactic" : "tactic " + chosen.front()->get_name();
    fmt::print(stderr, "tactic: {}: see {} --help\n", error.what(), name);
    return kUsageExit;
  }
  return guarded([&] { return run(run_options); });
}

}  // namespace
}  // namespace tactic::program

int main(int count, char** arguments) {
  tactic::program::watch_interrupts();
  return tactic::program::parse_and_run(count, arguments);
}
