// Options of the program: what they mean, their ranges, their help.
#include "arguments.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace tactic::program {
namespace {

std::string check_mass(const std::string& text) {
  double mass = 0;
  if (!CLI::detail::lexical_cast(text, mass) || !(mass > 0 && mass <= 1))
    return "must be in (0, 1], for example 0.9, not " + text;
  return "";
}

std::string check_cluster_size(const std::string& text) {
  int size = 0;
  if (!CLI::detail::lexical_cast(text, size) || size < 0 || size == 1 || size > 4096)
    return "must be 0, or 2 to 4096, not " + text;
  return "";
}

std::string check_name(const std::string& text) { return text.empty() ? "must name a file" : ""; }
CLI::Validator named() { return {check_name, ""}; }

void add_model_options(CLI::App* command, SessionOptions& options) {
  command->add_option("-m,--model", options.model, "model file (GGUF)")->check(named())->required();
  command->add_option("-f,--file", options.file, "document: a text file in UTF-8")->check(named())->required();
  command->add_option("-t,--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("-v,--verbose", options.verbose, "show the engine's own log");
}

void add_method_options(CLI::App* command, MethodOptions& options, bool with_stock) {
  auto* method = command->add_option("--method", options.method,
                                     "attention of the answer: tactic (as few tokens as reach the mass), paper (the same as "
                                     "published), full (every token, our kernel: lossless)" +
                                         std::string(with_stock ? ", stock (the engine's own), or a method to compare with: "
                                                                  "quest, streamingllm, snapkv, pyramidkv, ada-snapkv, h2o, "
                                                                  "oracle-top-k, oracle-top-p"
                                                                : ""));
  if (with_stock) {
    std::vector<std::string> names = {"tactic", "paper", "full", "stock"};
    for (int i = 0; i < kBaselines; ++i) names.emplace_back(name_of(static_cast<Baseline>(i)));
    method->check(CLI::IsMember(names));
  } else {
    method->check(CLI::IsMember({"tactic", "paper", "full"}));
  }
  method->capture_default_str();
  command
      ->add_option("-p,--mass", options.mass,
                   "share of the attention mass to reach, in (0, 1]; more costs more, 1 attends to everything")
      ->check(CLI::Validator(check_mass, "(0, 1]"))
      ->envname("TACTIC_MASS")
      ->capture_default_str();
  command
      ->add_option(
          "--goal", options.goal,
          "what tactic spends rows for: error (the output errs as little as if P of the mass were attended), mass (every "
          "query head attends to tokens that hold P of its mass)")
      ->check(CLI::IsMember({"error", "mass"}))
      ->envname("TACTIC_GOAL")
      ->capture_default_str();
  command
      ->add_flag(
          "--promise", options.promise,
          "keep a promise about mass: KV heads whose clusters are bad get a margin, found by probing with the prompt's last "
          "queries, or attend to everything; the goal is then mass")
      ->envname("TACTIC_PROMISE");
  command->add_option("--cluster-size", options.cluster_size, "mean tokens a cluster holds, 2 to 4096; 0: the method's own")
      ->check(CLI::Validator(check_cluster_size, "0 or 2 - 4096"))
      ->envname("TACTIC_CLUSTER_SIZE")
      ->capture_default_str();
}

// Of the methods that Tactic is compared with; the plug-in checks the values.
void add_budget_options(CLI::App* command, MethodOptions& options) {
  const std::pair<const char*, const char*> settings[] = {
      {"budget",
       "tokens a head of quest, snapkv and their like may attend: 512, 6.5% of the document, or a file of --save-budgets"},
      {"budget-head", "what the budget counts: kv (tokens of a KV head, the default) or query"},
      {"budget-by", "what a file gives: all (one mean for the model, the default), layer or head"},
      {"sharing", "what the query heads of a KV head share: natural (the default), none, united or one"},
      {"forced-sinks", "first tokens that each of these methods keeps, inside its budget"},
      {"dense-layers", "first layers that run dense, whatever the method"}};
  for (const auto& [name, help] : settings) {
    std::string setting = name;
    std::replace(setting.begin(), setting.end(), '-', '_');
    command->add_option_function<std::string>(
        std::string("--") + name, [&options, setting](const std::string& value) { options.settings[setting] = value; }, help);
  }
}

void add_truncate(CLI::App* command, Truncate& truncate) {
  command
      ->add_option_function<std::string>(
          "--truncate", [&truncate](const std::string& how) { truncate = how == "middle" ? Truncate::middle : Truncate::none; },
          "what to do with a document that is too long: none (an error), middle (leave out its middle)")
      ->check(CLI::IsMember({"none", "middle"}));
}

CLI::App* add_run(CLI::App& program, RunOptions& options) {
  CLI::App* command = program.add_subcommand("run", "answer a question about a long document");
  add_model_options(command, options.session);
  options.session.question = "What is this text about? Answer in a few sentences.";
  command->add_option("-q,--question", options.session.question, "what to ask about the document")->capture_default_str();
  add_method_options(command, options.session.method, true);
  add_budget_options(command, options.session.method);
  command->add_option("--save-budgets", options.save_budgets,
                      "write the mean tokens by layer and head of the answer to this file, for --budget");
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
  command
      ->add_option("--context", options.session.context,
                   "most tokens of document, question and answer; 0: all that the model has")
      ->check(CLI::Range(0, 1 << 26))
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
  return command;
}

void add_record_options(CLI::App* command, RecordOptions& options) {
  command->add_option("-n,--tokens", options.tokens, "tokens of the prompt; 0: as many as document and context have")
      ->check(CLI::Range(0, 1 << 26))
      ->capture_default_str();
  command->add_option("-s,--steps", options.steps, "decode steps after the prompt, over the document's next tokens")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("-t,--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("-v,--verbose", options.verbose, "show the engine's own log");
}

CLI::App* add_capture(CLI::App& program, CaptureOptions& options) {
  CLI::App* command = program.add_subcommand("capture", "record a model's queries, keys and values on a text");
  command->add_option("-m,--model", options.record.model, "model file (GGUF)")->check(named())->required();
  command->add_option("-f,--file", options.record.file, "document: a text file in UTF-8")->check(named())->required();
  add_record_options(command, options.record);
  command->add_option("-o,--output", options.output, "safetensors file to write")->check(named())->required();
  command->add_option("--json", options.json, "write shapes and counts to this file");
  command->footer(
      "The file holds q [steps, layers, q_heads, head_dim] and prompt_q (of the last 128 prompt tokens) in f32, k and v [layers, "
      "kv_heads, tokens, head_dim] in f16, the tokens, and the rotary parameters as metadata.\n"
      "Example:\n"
      "  tactic capture -m model.gguf -f book.txt -n 8000 -s 64 -o book.safetensors");
  return command;
}

CLI::App* add_inspect(CLI::App& program, InspectOptions& options) {
  CLI::App* command = program.add_subcommand("inspect", "show what was attended: budgets, true mass reached, success rate");
  auto* file = command->add_option("-c,--capture", options.capture, "file of tactic capture")->check(named());
  auto* model = command->add_option("-m,--model", options.record.model, "model file (GGUF), for a live run")->check(named());
  auto* document = command->add_option("-f,--file", options.record.file, "document of a live run")->check(named());
  file->excludes(model)->excludes(document);
  model->needs(document);
  document->needs(model);
  add_record_options(command, options.record);
  add_method_options(command, options.method, false);
  command->add_option("--csv", options.csv, "write a line for each layer, query head and step to this file");
  command->add_option("--html", options.html, "write a page with plots to this file; it needs no other file");
  command->add_option("--json", options.json, "write the summaries by layer and head to this file");
  command->footer(
      "Success is the share of (head, step) whose exact softmax mass on the attended tokens reaches P.\n"
      "Examples:\n"
      "  tactic inspect -c book.safetensors --html book.html\n"
      "  tactic inspect -c book.safetensors --method paper -p 0.9 --csv paper.csv\n"
      "  tactic inspect -m model.gguf -f book.txt -n 4000 -s 32 --html live.html");
  command->callback([&options] {
    if (options.capture.empty() && options.record.model.empty()) throw CLI::RequiredError("--capture, or --model and --file,");
  });
  return command;
}

CLI::App* add_bench_attention(CLI::App& program, BenchOptions& options) {
  CLI::App* bench = program.add_subcommand("bench", "measure speed");
  bench->require_subcommand(1);
  CLI::App* command = bench->add_subcommand("attention", "one layer's decode step by stages, beside what the memory allows");
  command->add_option("--q-heads", options.workload.q_heads, "query heads")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--kv-heads", options.workload.kv_heads, "KV heads")->check(CLI::Range(1, 256))->capture_default_str();
  command->add_option("--head-dim", options.workload.head_dim, "of q, K and V")
      ->check(CLI::IsMember({64, 80, 96, 128, 256}))
      ->capture_default_str();
  command->add_option("--context", options.workload.context, "tokens")->check(CLI::Range(256, 1 << 22))->capture_default_str();
  command->add_option("--layers", options.workload.layers, "attended to in turn, so that their K and V are not in a cache")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option("--keys", options.keys,
                   "synthetic (made after the statistics of captured ones, which are printed), or a file of "
                   "tactic capture, whose shape and length then count")
      ->capture_default_str();
  command->add_option("--share", options.share, "scale the queries until this share of K and V is attended; 0: don't")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command
      ->add_flag("--huge-pages,!--no-huge-pages", options.workload.huge_pages,
                 "K and V in pages of 2 MB, as the plug-in keeps the engine's cache, or of 4 KB (default: 2 MB)")
      ->envname("TACTIC_HUGE_PAGES");
  command->add_option("--seed", options.workload.seed, "of synthetic keys")->capture_default_str();
  command->add_option("--rounds", options.rounds, "of timing")->check(CLI::Range(1, 10000))->capture_default_str();
  add_method_options(command, options.method, false);
  command->add_option("-t,--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--json", options.json, "write the figures to this file");
  command->footer(
      "The limit is a bare gather of the same rows plus streaming of the clusters' metadata, timed in the same run.\n"
      "Examples:\n"
      "  tactic bench attention --context 32768\n"
      "  tactic bench attention --context 131072 --layers 2 --goal mass --share 0.025\n"
      "  tactic bench attention --keys book.safetensors --json bench.json");
  command->callback([&options] {
    const WorkloadSpec& w = options.workload;
    try {
      validate(Shape{.q_heads = w.q_heads, .kv_heads = w.kv_heads, .head_dim = w.head_dim, .v_head_dim = w.head_dim});
    } catch (const Error& error) {
      throw CLI::ValidationError("--q-heads, --kv-heads", error.what());
    }
  });
  return command;
}

// A message may quote what the user wrote: kept to one line.
std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  return text;
}

}  // namespace

Request parse(int count, const char* const* arguments) {
  CLI::App program("Answers from long documents with adaptive sparse attention.", "tactic");
  program.set_version_flag("--version", TACTIC_VERSION);
  program.require_subcommand(1);
  program.footer("Start with: tactic run --help");
  RunOptions run;
  CaptureOptions capture;
  InspectOptions inspect;
  BenchOptions bench;
  const CLI::App* const run_command = add_run(program, run);
  const CLI::App* const capture_command = add_capture(program, capture);
  const CLI::App* const inspect_command = add_inspect(program, inspect);
  const CLI::App* const bench_command = add_bench_attention(program, bench);
  // For the list of commands: its options are eval_arguments.cpp's (see dispatch.cpp).
  program.add_subcommand("eval", "the paper's experiments on your model and text");
  try {
    program.parse(count, arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      std::ostringstream text;
      program.exit(error, text, text);
      return {.command = {}, .text = text.str(), .exit_code = 0};
    }
    const auto chosen = program.get_subcommands();
    const std::string name = chosen.empty() ? "tactic" : "tactic " + chosen.front()->get_name();
    return {
        .command = {}, .text = fmt::format("tactic: {}: see {} --help", one_line(error.what()), name), .exit_code = kUsageExit};
  }
  if (run_command->parsed()) return {.command = std::move(run), .text = {}};
  if (capture_command->parsed()) return {.command = std::move(capture), .text = {}};
  if (inspect_command->parsed()) return {.command = std::move(inspect), .text = {}};
  if (bench_command->parsed()) return {.command = std::move(bench), .text = {}};
  return {.command = {}, .text = "tactic: no command: see tactic --help", .exit_code = kUsageExit};
}

}  // namespace tactic::program
