// Sums over rows, and the current settings.
#include "shared.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "caches.h"
#include "engine.h"

namespace tactic::llama {

Shared& Shared::instance() {
  static auto* const shared = new Shared;  // never destroyed: the engine may compute while the process ends
  return *shared;
}

std::shared_ptr<const Settings> Shared::settings() const {
  const std::lock_guard lock(mutex_);
  return settings_;
}

void Shared::set(std::shared_ptr<const Settings> settings) {
  set_log_level(settings->log());
  const std::lock_guard lock(mutex_);
  settings_ = std::move(settings);
}

Trace Shared::trace() const {
  const std::lock_guard lock(mutex_);
  return trace_;
}

void Shared::set_trace(const Trace& trace) {
  const std::lock_guard lock(mutex_);
  trace_ = trace;
}

void Shared::count_row(const StepReport& report, std::int64_t tokens, bool sparse) {
  const auto mean = [](const auto& values) {
    return values.empty() ? 0.0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  const std::lock_guard lock(mutex_);
  ++sums_.rows;
  sums_.attended_share += mean(report.attended) / static_cast<double>(tokens);
  if (sparse) {
    ++sums_.sparse_rows;
    const double estimated = mean(report.estimated_mass);
    if (!std::isnan(estimated)) {  // a baseline does not estimate
      ++sums_.estimated_rows;
      sums_.estimated_mass += estimated;
    }
  }
  sums_.bytes += report.bytes;
  sums_.dense_bytes += report.dense_bytes;
  sums_.rank_us += report.rank_us;
  sums_.estimate_us += report.estimate_us;
  sums_.union_us += report.union_us;
  sums_.attend_us += report.attend_us;
  sums_.total_us += report.total_us;
}

void Shared::count_clustering(const double seconds, std::int64_t tokens) {
  const std::lock_guard lock(mutex_);
  sums_.cluster_seconds += seconds;
  sums_.clustered_tokens += static_cast<std::uint64_t>(tokens);
}

void Shared::count_declined() {
  const std::lock_guard lock(mutex_);
  ++sums_.declined;
}

void Shared::count_observed() {
  const std::lock_guard lock(mutex_);
  ++sums_.observed;
}

void Shared::read(tactic_llama_stats& out) const {
  tactic_llama_stats stats{};
  {
    const std::lock_guard lock(mutex_);
    const auto per = [](double sum, std::uint64_t count) { return count == 0 ? 1.0 : sum / static_cast<double>(count); };
    stats.rows = sums_.rows;
    stats.sparse_rows = sums_.sparse_rows;
    stats.declined = sums_.declined;
    stats.observed = sums_.observed;
    stats.attended_share = per(sums_.attended_share, sums_.rows);
    stats.estimated_mass = per(sums_.estimated_mass, sums_.estimated_rows);
    stats.bytes = sums_.bytes;
    stats.dense_bytes = sums_.dense_bytes;
    stats.rank_us = sums_.rank_us;
    stats.estimate_us = sums_.estimate_us;
    stats.union_us = sums_.union_us;
    stats.attend_us = sums_.attend_us;
    stats.total_us = sums_.total_us;
    stats.cluster_seconds = sums_.cluster_seconds;
    stats.clustered_tokens = sums_.clustered_tokens;
  }
  Caches::instance().for_each([&](Layer& layer) { stats.index_bytes += layer.index_bytes(); });
  // A program built against an older or newer header gives its own size.
  stats.size = out.size;
  std::memcpy(&out, &stats, std::min(out.size, sizeof stats));
}

void Shared::reset() {
  const std::lock_guard lock(mutex_);
  sums_ = {};
  budgets_.clear();
}

void Shared::count_budgets(int layer, std::span<const std::int64_t> kv, std::span<const std::int64_t> query,
                           std::int64_t generated, std::int64_t prompt) {
  const std::lock_guard lock(mutex_);
  budgets_.add(layer, kv, query, generated, prompt);
}

BudgetTables Shared::budgets() const {
  const std::lock_guard lock(mutex_);
  BudgetTables tables = budgets_.means();
  tables.method = settings_->get("method").value_or("");
  tables.mass = static_cast<double>(settings_->options().mass);
  return tables;
}

void Shared::note_failure(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  failure_ = reason;
}

std::string Shared::take_failure() {
  const std::lock_guard lock(mutex_);
  return std::exchange(failure_, {});
}

}  // namespace tactic::llama
