// Settings of the methods that Tactic is compared with: see docs/baselines.md.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "baselines/baselines.h"

namespace tactic::llama {

class BaselineSettings {
 public:
  static std::span<const char* const> names();
  static bool knows(const std::string& name);

  // Throws Error(invalid_argument) that names the setting, the value and what is allowed.
  void set(const std::string& name, const std::string& value);
  std::string get(const std::string& name) const;  // of a known name

  void choose(Baseline method) { options_.method = method; }
  bool is(Baseline method) const { return options_.method == method; }
  // Throws Error(invalid_argument) when the options do not go together, or the budget is below what the method needs.
  void check() const;

  BaselineOptions options(float mass) const;  // mass: P of oracle-top-p
  // As head_budgets() wants it: of a file, the table that budget_head and budget_by ask for.
  Budget budget() const;

 private:
  BaselineOptions options_;
  std::string budget_text_ = "1024";
  Budget amount_;                                // of a number; its table is empty
  std::vector<std::vector<double>> kv_, query_;  // of a file: means by layer and head; empty: no file
  bool of_query_heads_ = false;                  // budget_head
  int by_ = 0;                                   // budget_by: all, layer, head
};

}  // namespace tactic::llama
