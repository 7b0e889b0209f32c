// Speed: rows of the GPU benchmark where --csv names them, else this machine's CPU (Table 6, Figures 10 to 12).
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "commands.h"
#include "core/error.h"
#include "eval.h"
#include "eval/gpu_csv.h"
#include "eval_windows.h"
#include "interrupt.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

namespace {

// Keeps the rows of the experiment's slices.
void import_csv(EvalRun& run) {
  const std::vector<Json> rows = eval::read_gpu_csv(run.options().csv);
  const Json slices = run.spec().settings.value("slices", Json::array());
  std::size_t found = 0;
  for (const Json& row : rows) {
    if (std::find(slices.begin(), slices.end(), row["slice"]) == slices.end()) continue;
    ++found;
    Json config = {{"experiment", run.spec().journal}, {"source", "gpu"}, {"row", row}};
    const std::string key = eval::Journal::key_of(config);
    if (run.journal().find(key) == nullptr) run.keep(config, row);
    run.done(false, "");
  }
  if (found == 0)
    throw Error(Status::corrupt, fmt::format("{} has no row whose slice is one of {}: run bench/gpu/run.py with it",
                                             run.options().csv, slices.dump()));
}

// One layer's step by stage, at the experiment's lengths.
void measure_layers(EvalRun& run) {
  const auto lengths = run.options().context > 0 ? std::vector<int>{run.options().context}
                                                 : run.spec().settings.value("contexts", std::vector<int>{32768});
  run.expect(lengths.size() * run.spec().arms.size());
  for (const int length : lengths) {
    for (const Arm& arm : run.spec().arms) {
      if (interrupted()) throw Interrupted{};
      Json config = run.config_of(arm, 0);
      config["context"] = length;
      config["threads"] = run.options().threads;
      const std::string key = eval::Journal::key_of(config);
      const bool measured = run.journal().find(key) == nullptr;
      if (measured) {
        const std::string path = (std::filesystem::path(run.options().output) / ".bench.json").string();
        BenchOptions bench;
        bench.workload.context = length;
        bench.method.method = arm.method;
        bench.method.mass = arm.mass;
        bench.threads = run.options().threads;
        bench.json = path;
        bench_attention(bench);
        std::ifstream in(path);
        Json result = {{"arm", arm.label}};
        for (const auto& [name, value] : Json::parse(in).items()) {
          if (name != "keys") result[name] = value;
        }
        std::filesystem::remove(path);
        run.keep(config, result);
      }
      run.done(measured, fmt::format("{} tokens, {}", length, arm.label));
    }
  }
}

// Seconds of prefill and of clustering for the same tokens. Prefill is read now, never taken from the cache.
void measure_clustering(EvalRun& run) {
  const auto lengths = run.options().context > 0 ? std::vector<int>{run.options().context}
                                                 : run.spec().settings.value("contexts", std::vector<int>{4096});
  const int longest = *std::max_element(lengths.begin(), lengths.end());
  run.open(longest + 2);
  run.expect(lengths.size() * run.arms().size());
  for (const int length : lengths) {
    const Window window = make_windows(run.engine().model(), run.options().texts, length, 1, 1).front();
    double prefill = 0;  // read for the first arm that is measured; the next find the prompt in the engine
    for (const Arm& arm : run.arms()) {
      Json config = run.config_of(arm, 0);
      config["context"] = length;
      config["threads"] = run.engine().threads();
      const std::string key = eval::Journal::key_of(config);
      const bool measured = run.journal().find(key) == nullptr;
      if (measured) {
        prefill = std::max(prefill, run.engine().read(window.prompt));
        run.engine().start(arm, 0);
        run.engine().step(window.steps.front());
        const double cluster = run.engine().attended().cluster_seconds;
        run.keep(config, {{"arm", arm.label},
                          {"context", length},
                          {"threads", run.engine().threads()},
                          {"prefill_seconds", prefill},
                          {"cluster_seconds", cluster},
                          {"share", prefill > 0 ? Json(cluster / prefill) : Json(nullptr)}});
      }
      run.done(measured, fmt::format("{} tokens, {}", length, arm.label));
    }
  }
}

}  // namespace

void run_speed(EvalRun& run) {
  if (!run.options().csv.empty()) return import_csv(run);
  if (run.spec().measure == "layers") return measure_layers(run);
  if (run.spec().measure == "clustering") return measure_clustering(run);
  throw Error(Status::invalid_argument,
              fmt::format("{} is about a GPU: run bench/gpu/run.py there and name its file with --csv", run.spec().name));
}

}  // namespace tactic::program
