// An experiment as data: what is measured, on what, with which kinds of attention ("arms").
//
// eval/experiments/NAME.json; docs/evaluation.md describes every field.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tactic::eval {

using Json = nlohmann::ordered_json;

// One kind of attention. A fixed-budget arm takes its budget from another arm's measured mean, in the same sample.
struct Arm {
  std::string label;      // unique in an experiment: "paper P=0.9", "quest B=paper P=0.9"
  std::string method;     // as in --method
  double mass = 0;        // P; 0: the method has none
  std::string budget_of;  // label of the arm that sets the budget; empty: no budget
  std::string count;      // of which mean: "kv" (per KV head, after the union) or "q" (per query head)
  std::vector<std::pair<std::string, std::string>> settings;  // of the plug-in, besides method, mass and budget
};

struct Spec {
  std::string name;     // fig9
  std::string journal;  // whose results these are: experiments that read the same samples differently share them
  std::string kind;     // which runner: closeness, attention, ruler, longbench, speed
  std::string measure;  // what of it, for kinds that have several
  std::string title;
  std::string paper;  // "Figure 9"; empty: an experiment of our own
  std::string about;
  Json settings;          // defaults that options replace: context, steps, windows, samples, ...
  std::vector<Arm> arms;  // in the order in which they run: a budget's source before its users
  Json published;         // the paper's numbers, for the report
};

// What a user may replace before the arms are made.
struct SpecChanges {
  std::vector<double> masses;         // instead of every list of masses
  std::vector<std::string> methods;   // only these, and the sources of their budgets
  std::vector<std::string> settings;  // NAME=VALUE for every arm
};

// Throws Error(corrupt) naming origin and field.
Spec parse_spec(const Json& json, const std::string& origin, const SpecChanges& changes = {});

// The experiments of the project, as JSON, by name.
struct BuiltIn {
  const char* name;
  const char* text;
};
std::span<const BuiltIn> built_in_experiments();

}  // namespace tactic::eval
