// What all experiments share: specification, journal, engine, progress.
#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/isa.h"
#include "eval.h"
#include "interrupt.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

namespace {

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string now() {
  const std::time_t time = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&time, &utc);
  char text[32] = {};
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

}  // namespace

EvalRun::EvalRun(const EvalOptions& options, eval::Spec spec) : options_(options), spec_(std::move(spec)) {
  std::error_code error;
  std::filesystem::create_directories(options_.output, error);
  if (error)
    throw Error(Status::io,
                fmt::format("folder {} cannot be made ({}): name another with --output", options_.output, error.message()));
  journal_.emplace((std::filesystem::path(options_.output) / (spec_.journal + ".jsonl")).string(), spec_.journal, TACTIC_VERSION);
}

int EvalRun::number(const char* name, int replaced) const {
  if (replaced > 0) return replaced;
  const Json& value = spec_.settings.value(name, Json(0));
  if (!value.is_number_integer()) {
    throw Error(Status::corrupt,
                fmt::format("experiment {}: field settings.{} is {}, must be a whole number", spec_.name, name, value.dump()));
  }
  return value.get<int>();
}

std::string EvalRun::text(const char* name, const std::string& replaced) const {
  return replaced.empty() ? spec_.settings.value(name, std::string()) : replaced;
}

Json EvalRun::describe_run() const {
  utsname system = {};
  uname(&system);
  const ModelShape shape = engine_->model().shape();
  Json arms = Json::array();
  for (const Arm& arm : arms_) arms.push_back(arm.label);
  return {{"started", now()},
          {"experiment", spec_.name},
          {"title", spec_.title},
          {"program", TACTIC_VERSION},
          {"engine", engine_version()},
          {"build", engine_->build()},
          {"isa", name_of(active_isa())},
          {"model", file_name(options_.model)},
          {"model_description", engine_->model().description()},
          {"layers", shape.layers},
          {"q_heads", shape.q_heads},
          {"kv_heads", shape.kv_heads},
          {"threads", engine_->threads()},
          {"processor", processor()},
          {"system", fmt::format("{} {} {}", system.sysname, system.release, system.machine)},
          {"settings", spec_.settings},
          {"spec",
           {{"name", spec_.name},
            {"kind", spec_.kind},
            {"measure", spec_.measure},
            {"title", spec_.title},
            {"paper", spec_.paper},
            {"about", spec_.about}}},
          {"arms", arms}};
}

void EvalRun::open(int context) {
  if (options_.model.empty()) throw Error(Status::invalid_argument, "no model: name one with --model");
  engine_.emplace(EngineOptions{
      .model = options_.model,
      .context = context,
      .threads = options_.threads,
      .cache = options_.cache,
      .keep_prompts = options_.keep_prompts,
      .columns = std::any_of(spec_.arms.begin(), spec_.arms.end(), [](const Arm& arm) { return arm.method == "h2o"; }),
      .verbose = options_.verbose});
  for (const Arm& arm : spec_.arms) {
    const std::string problem = engine_->method_problem(arm);
    const bool sourced = arm.budget_of.empty() ||
                         std::any_of(arms_.begin(), arms_.end(), [&](const Arm& other) { return other.label == arm.budget_of; });
    if (problem.empty() && sourced) {
      arms_.push_back(arm);
    } else {
      fmt::print(stderr, "tactic: left out: {} ({})\n", arm.label, problem.empty() ? "its budget's source is left out" : problem);
    }
  }
  journal_->append_run(describe_run());
}

std::vector<Window> EvalRun::open_windows() {
  const int context = number("context", options_.context);
  const int steps = number("steps", options_.steps);
  open(context + steps + 1);
  std::vector<Window> windows =
      make_windows(engine().model(), options_.texts, context, steps, number("windows", options_.windows));
  expect(windows.size() * arms().size());
  return windows;
}

Json EvalRun::config_of(const Arm& arm, double budget) const {
  Json config = {{"experiment", spec_.journal},
                 {"model", file_name(options_.model)},
                 {"model_identity", fmt::format("{:016x}", engine_ ? engine_->model_identity() : 0)},
                 {"arm", arm.label},
                 {"method", arm.method}};
  if (arm.mass > 0) config["mass"] = arm.mass;
  if (budget > 0) config["budget"] = std::llround(budget);
  for (const auto& [name, value] : arm.settings) config["set"][name] = value;
  return config;
}

const Json& EvalRun::keep(const Json& config, Json result) {
  if (engine_) result["build"] = engine_->build();
  const std::string key = eval::Journal::key_of(config);
  journal_->append(key, config, result);
  return *journal_->find(key);
}

double EvalRun::budget_of(const Arm& arm, const std::map<std::string, Json>& results) {
  if (arm.budget_of.empty()) return 0;
  const Json& source = results.at(arm.budget_of);
  return std::round(source.at(arm.count == "q" ? "q_tokens" : "kv_tokens").get<double>());
}

void EvalRun::done(bool measured, const std::string& what) {
  ++done_;
  if (!measured) return;
  ++measured_;
  const double each = seconds_since(start_) / static_cast<double>(measured_);
  const double left = each * static_cast<double>(expected_ > done_ ? expected_ - done_ : 0);
  fmt::print(stderr, "{} {}/{}  {:.1f} samples/min, {} left  {}\n", spec_.name, done_, expected_, 60 / std::max(each, 1e-9),
             duration(left), what);
}

void EvalRun::finish() const {
  fmt::print("{}: {} samples in {}/{}.jsonl, {} measured now in {}\n", spec_.name, done_, options_.output, spec_.journal,
             measured_, duration(seconds_since(start_)));
}

Json json_of(const Attended& attended) {
  return {{"kv_tokens", attended.kv_tokens},
          {"q_tokens", attended.q_tokens},
          {"attended_share", attended.share},
          {"bytes_share", attended.bytes_share},
          {"dense_bytes_per_step", attended.dense_bytes_per_step},
          {"estimated_mass", attended.estimated_mass},
          {"cluster_seconds", attended.cluster_seconds},
          {"attention_us", attended.attention_us}};
}

namespace {

eval::Spec load_spec(const EvalOptions& options) {
  const auto parse = [&](const std::string& text, const std::string& origin) {
    const Json json = Json::parse(text, nullptr, false);
    if (json.is_discarded())
      throw Error(Status::corrupt, fmt::format("experiment {} is not JSON: see docs/evaluation.md", origin));
    return eval::parse_spec(json, origin, options.changes);
  };
  if (options.experiment.ends_with(".json")) return parse(read_document(options.experiment), options.experiment);
  for (const auto& known : eval::built_in_experiments()) {
    if (options.experiment == known.name) return parse(known.text, known.name);
  }
  throw Error(Status::invalid_argument, fmt::format("there is no experiment {}: see tactic eval --help", options.experiment));
}

void list(const eval::Spec& spec) {
  fmt::print("{}: {}{}\n{}\nsettings: {}\n", spec.name, spec.title,
             spec.paper.empty() ? "" : " (" + spec.paper + " of the paper)", spec.about, spec.settings.dump());
  for (const Arm& arm : spec.arms) fmt::print("  {}\n", arm.label);
}

}  // namespace

int eval_command(const EvalOptions& options) {
  eval::Spec spec = load_spec(options);
  if (options.list) {
    list(spec);
    return 0;
  }
  const std::string kind = spec.kind;
  EvalRun run(options, std::move(spec));
  if (kind == "closeness") {
    run_closeness(run);
  } else if (kind == "attention") {
    run_attention(run);
  } else if (kind == "ruler") {
    run_ruler(run);
  } else if (kind == "longbench") {
    run_longbench(run);
  } else if (kind == "speed") {
    run_speed(run);
  } else {
    throw Error(Status::corrupt,
                fmt::format("experiment {}: field kind is {}, must be closeness, attention, ruler, longbench or speed",
                            options.experiment, kind));
  }
  run.finish();
  return 0;
}

}  // namespace tactic::program
