// What the control functions and the running steps share: settings, statistics, the trace.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "budget_file.h"
#include "control.h"
#include "decode/decode.h"
#include "settings.h"

namespace tactic::llama {

struct Trace {
  tactic_llama_trace_fn call = nullptr;
  void* user = nullptr;
  bool true_mass = false;
};

class Shared {
 public:
  static Shared& instance();

  std::shared_ptr<const Settings> settings() const;
  void set(std::shared_ptr<const Settings> settings);
  Trace trace() const;
  void set_trace(const Trace& trace);

  // One attended row; report.attended and estimated_mass as filled by the step.
  void count_row(const StepReport& report, std::int64_t tokens, bool sparse);
  void count_clustering(const double seconds, std::int64_t tokens);
  void count_declined();
  void count_observed();
  void read(tactic_llama_stats& out) const;
  void reset();

  // Prompt tokens that a row attended: see BudgetLog.
  void count_budgets(int layer, std::span<const std::int64_t> kv, std::span<const std::int64_t> query, std::int64_t generated,
                     std::int64_t prompt);
  BudgetTables budgets() const;

  // Why the last graph failed.
  void note_failure(const std::string& reason);
  std::string take_failure();

 private:
  struct Sums {
    std::uint64_t rows = 0, sparse_rows = 0, estimated_rows = 0, declined = 0, observed = 0, clustered_tokens = 0;
    double attended_share = 0, estimated_mass = 0, bytes = 0, dense_bytes = 0;
    double rank_us = 0, estimate_us = 0, union_us = 0, attend_us = 0, total_us = 0, cluster_seconds = 0;
  };
  mutable std::mutex mutex_;
  std::shared_ptr<const Settings> settings_ = std::make_shared<Settings>();
  Trace trace_;
  Sums sums_;
  BudgetLog budgets_;
  std::string failure_;
};

}  // namespace tactic::llama
