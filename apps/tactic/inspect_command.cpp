// capture and inspect: the commands over a recorded model.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "core/isa.h"
#include "files.h"
#include "inspect.h"

namespace tactic::program {
namespace {

using nlohmann::ordered_json;

constexpr const char* kJsonRemedy = "name another file with --json";

ordered_json json_of(const HeadSummary& sum) {
  return {{"attended_tokens", sum.attended}, {"attended_share", sum.attended_share},
          {"budget_tokens", sum.budget},     {"estimated_mass", sum.estimated_mass},
          {"true_mass", sum.true_mass},      {"worst_true_mass", sum.worst_mass},
          {"success_rate", sum.success},     {"rows", sum.count}};
}

ordered_json json_of(const PromiseSummary& sum) {
  return {{"kv_heads", sum.heads},
          {"dense_kv_heads", sum.dense},
          {"kv_heads_with_margin", sum.with_margin},
          {"margin_mean", sum.mean_margin}};
}

ordered_json json_of(const Inspection& inspection, const MethodOptions& method) {
  ordered_json json;
  json["model"] = inspection.info.model;
  json["context_tokens"] = inspection.info.tokens();
  json["steps"] = inspection.info.steps;
  json["layers"] = inspection.info.layers;
  json["q_heads"] = inspection.info.shape.q_heads;
  json["kv_heads"] = inspection.info.shape.kv_heads;
  json["method"] = method.method;
  json["mass"] = method.mass;
  json["goal"] = method.used_goal();
  json["promise"] = inspection.options.promise;
  json["cluster_size"] = inspection.options.cluster_size;
  json["cluster_seconds"] = inspection.cluster_seconds;
  json["isa"] = name_of(active_isa());
  json["all"] = json_of(summarise(inspection, -1, -1));
  const bool promise = !inspection.margin.empty();
  if (promise) json["all"]["promise"] = json_of(summarise_promise(inspection, -1));
  for (int layer = 0; layer < inspection.info.layers; ++layer) {
    ordered_json entry = json_of(summarise(inspection, layer, -1));
    entry["layer"] = layer;
    if (promise) entry["promise"] = json_of(summarise_promise(inspection, layer));
    for (int head = 0; head < inspection.info.shape.q_heads; ++head)
      entry["heads"].push_back(json_of(summarise(inspection, layer, head)));
    json["by_layer"].push_back(entry);
  }
  return json;
}

// layer < 0: all.
void print_row(const Inspection& inspection, int layer) {
  const HeadSummary sum = summarise(inspection, layer, -1);
  fmt::print("{:<6} {:>9.0f} {:>8.1f}% {:>9.0f} {:>10.4f} {:>10.4f} {:>10.4f} {:>8.1f}%",
             layer < 0 ? "all" : std::to_string(layer), sum.attended, 100 * sum.attended_share, sum.budget, sum.estimated_mass,
             sum.true_mass, sum.worst_mass, 100 * sum.success);
  if (!inspection.margin.empty()) {
    const PromiseSummary promise = summarise_promise(inspection, layer);
    fmt::print(" {:>4} of {:<4} {:>5.2f}", promise.dense, promise.heads, promise.mean_margin);
  }
  fmt::print("\n");
}

void print_table(const Inspection& inspection) {
  fmt::print("{}, {} tokens, {} steps, P = {}\n", inspection.info.model, inspection.info.tokens(), inspection.info.steps,
             inspection.options.mass);
  fmt::print("{:<6} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10} {:>9}{}\n", "layer", "attended", "share", "budget", "estimated",
             "true mass", "worst", "success", inspection.margin.empty() ? "" : " dense heads margin");
  for (int layer = 0; layer < inspection.info.layers; ++layer) print_row(inspection, layer);
  print_row(inspection, -1);
  if (!inspection.margin.empty())
    fmt::print("promise: KV heads that attend to everything; mean margin of the others, which aim at 1 - margin (1 - P)\n");
  fmt::print("tokens and masses: mean over heads and steps; success: share of (head, step) whose true mass reaches P\n");
}

}  // namespace

int capture(const CaptureOptions& options) {
  NewFile probe(options.output, "name another file with --output");  // before minutes of work
  const Capture recorded = record(options.record);
  recorded.write(options.output);
  const CaptureInfo& info = recorded.info();
  fmt::print("{}: {} layers, {} query heads, {} KV heads, head dim {}, {} tokens, {} steps\n", options.output, info.layers,
             info.shape.q_heads, info.shape.kv_heads, info.shape.head_dim, info.tokens(), info.steps);
  if (options.json.empty()) return 0;
  const ordered_json json = {{"model", info.model},
                             {"output", options.output},
                             {"layers", info.layers},
                             {"q_heads", info.shape.q_heads},
                             {"kv_heads", info.shape.kv_heads},
                             {"head_dim", info.shape.head_dim},
                             {"context_tokens", info.tokens()},
                             {"prompt_tokens", info.prompt_tokens},
                             {"steps", info.steps}};
  write_text_file(options.json, json.dump(2) + "\n", kJsonRemedy);
  return 0;
}

int inspect_command(const InspectOptions& options) {
  const Options method = options_for(options.method);
  const Capture recorded = options.capture.empty() ? record(options.record) : Capture::read(options.capture);
  const Inspection inspection = inspect(recorded, method, options.record.threads);
  print_table(inspection);
  if (!options.csv.empty()) write_text_file(options.csv, csv_of(inspection), "name another file with --csv");
  if (!options.html.empty()) write_text_file(options.html, page_of(inspection), "name another file with --html");
  if (!options.json.empty()) write_text_file(options.json, json_of(inspection, options.method).dump(2) + "\n", kJsonRemedy);
  return 0;
}

}  // namespace tactic::program
