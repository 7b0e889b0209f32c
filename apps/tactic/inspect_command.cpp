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
  json["cluster_size"] = inspection.options.cluster_size;
  json["cluster_seconds"] = inspection.cluster_seconds;
  json["isa"] = name_of(active_isa());
  json["all"] = json_of(summarise(inspection, -1, -1));
  for (int layer = 0; layer < inspection.info.layers; ++layer) {
    ordered_json entry = json_of(summarise(inspection, layer, -1));
    entry["layer"] = layer;
    for (int head = 0; head < inspection.info.shape.q_heads; ++head)
      entry["heads"].push_back(json_of(summarise(inspection, layer, head)));
    json["by_layer"].push_back(entry);
  }
  return json;
}

void print_row(const std::string& name, const HeadSummary& sum) {
  fmt::print("{:<6} {:>9.0f} {:>8.1f}% {:>9.0f} {:>10.4f} {:>10.4f} {:>10.4f} {:>8.1f}%\n", name, sum.attended,
             100 * sum.attended_share, sum.budget, sum.estimated_mass, sum.true_mass, sum.worst_mass, 100 * sum.success);
}

void print_table(const Inspection& inspection) {
  fmt::print("{}, {} tokens, {} steps, P = {}\n", inspection.info.model, inspection.info.tokens(), inspection.info.steps,
             inspection.options.mass);
  fmt::print("{:<6} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10} {:>9}\n", "layer", "attended", "share", "budget", "estimated",
             "true mass", "worst", "success");
  for (int layer = 0; layer < inspection.info.layers; ++layer) print_row(std::to_string(layer), summarise(inspection, layer, -1));
  print_row("all", summarise(inspection, -1, -1));
  fmt::print("tokens and masses: mean over heads and steps; success: share of (head, step) whose true mass reaches P\n");
}

}  // namespace

Options options_for(const MethodOptions& wanted) {
  Options options = wanted.method == "paper" ? paper_options() : Options{};
  options.method = wanted.method == "paper" ? Method::paper : (wanted.method == "full" ? Method::full : Method::tactic);
  options.mass = static_cast<float>(wanted.mass);
  if (wanted.cluster_size > 0) options.cluster_size = wanted.cluster_size;
  validate(options);
  return options;
}

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
