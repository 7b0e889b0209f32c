// Mean tokens by layer and head as a JSON file: what a run of Tactic took, for methods with a fixed budget to take.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/types.h"

namespace tactic::llama {

struct BudgetTables {
  std::string method;  // that took them
  double mass = 0;
  std::int64_t rows = 0;                        // tokens x layers that the means are over
  double prompt_tokens = 0;                     // mean over rows
  std::vector<std::vector<double>> kv_head;     // [layers, kv_heads] attended, after the union; generated tokens not counted
  std::vector<std::vector<double>> query_head;  // [layers, q_heads] what each head would take by itself
};

// Throws Error(invalid_argument) that names file, field and what is wrong with it.
BudgetTables read_budgets(const std::string& path);
// Throws Error(io). The file is there whole or not at all.
void write_budgets(const std::string& path, const BudgetTables& tables);

// Sums over attended rows.
class BudgetLog {
 public:
  // One row: kv [kv_heads], query [q_heads] tokens, `generated` of each not counted.
  void add(int layer, std::span<const std::int64_t> kv, std::span<const std::int64_t> query, std::int64_t generated,
           std::int64_t prompt);
  void clear() { layers_.clear(); }
  // Throws Error(invalid_state) when there is nothing, or a layer was never attended.
  BudgetTables means() const;

 private:
  struct Sums {
    std::int64_t rows = 0;
    double prompt = 0;
    std::vector<double> kv, query;
  };
  std::vector<Sums> layers_;
};

}  // namespace tactic::llama
