// A decode step on the CPU: which path, the phases in order, the report.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "decode/decode.h"
#include "decode/dense.h"
#include "decode/sparse.h"
#include "decode/workspace.h"

namespace tactic {
namespace {

using Clock = std::chrono::steady_clock;

double row_bytes(const KvView& kv) {
  return static_cast<double>(static_cast<std::size_t>(kv.k.dim) * size_of(kv.k.type) +
                             static_cast<std::size_t>(kv.v.dim) * size_of(kv.v.type));
}

// Bytes of metadata a step reads: every centroid with scale, spread and size; mean V of the tail.
double metadata_bytes(const SparseStep& step, int kv_head) {
  const HeadTable& table = step.table(kv_head);
  double bytes = 0;
  for (const HeadTable::Part& part : table.parts) {
    const HeadClusters& c = *part.clusters;
    bytes += static_cast<double>(c.centroid8.size() + 2 * c.centroid16.size() + 4 * c.centroid_scale.size());
  }
  const double scalars = step.options.method == Method::paper ? 4 : 8;  // size; spread
  const double tail = step.head(kv_head).tail_count * (step.query.shape.v_head_dim + 4.0);
  return bytes + scalars * table.count + tail;
}

void mark_range(std::uint64_t* bits, std::int64_t first, std::int64_t last) {
  for (std::int64_t t = first; t < last; ++t) bits[t / 64] |= std::uint64_t{1} << (t % 64);
}

void report_dense(const Query& query, const KvView& kv, StepReport& report) {
  const Shape& shape = query.shape;
  std::fill(report.attended.begin(), report.attended.end(), kv.tokens);
  std::fill(report.estimated_mass.begin(), report.estimated_mass.end(), 1.0f);
  std::fill(report.budget.begin(), report.budget.end(), kv.tokens);
  if (!report.token_bits.empty()) {
    const std::int64_t words = (kv.tokens + 63) / 64;
    for (int h = 0; h < shape.kv_heads; ++h) mark_range(report.token_bits.data() + h * words, 0, kv.tokens);
  }
  report.bytes = report.dense_bytes = row_bytes(kv) * static_cast<double>(kv.tokens) * shape.kv_heads;
}

void report_sparse(const SparseStep& step, StepReport& report) {
  const Shape& shape = step.query.shape;
  const std::int64_t always = step.index.first() + step.kv.tokens - step.index.last();
  report.dense_bytes = row_bytes(step.kv) * static_cast<double>(step.kv.tokens) * shape.kv_heads;
  report.bytes = 0;
  for (int h = 0; h < shape.kv_heads; ++h) {
    const HeadWork& work = step.head(h);
    const auto k_row = static_cast<double>(static_cast<std::size_t>(step.kv.k.dim) * size_of(step.kv.k.type));
    report.bytes += row_bytes(step.kv) * static_cast<double>(always + work.attended) + k_row * static_cast<double>(work.sampled) +
                    metadata_bytes(step, h);
    if (!report.attended.empty()) report.attended[static_cast<std::size_t>(h)] = always + work.attended;
    for (int g = 0; g < shape.group(); ++g) {
      const auto q = static_cast<std::size_t>(h * shape.group() + g);
      if (!report.estimated_mass.empty()) report.estimated_mass[q] = work.covered[g];
      if (!report.budget.empty()) report.budget[q] = step.options.method == Method::paper ? work.budget[g] : work.attended;
    }
  }
}

// Wall time of the phases, divided as the workers' clocks say.
void report_times(const Workspace& workspace, int workers, double wall_us, StepReport& report) {
  WorkerClock sum;
  for (int w = 0; w < workers; ++w) {
    const WorkerClock& clock = workspace.clocks[static_cast<std::size_t>(w)];
    sum.rank += clock.rank;
    sum.fixed += clock.fixed;
    sum.estimate += clock.estimate;
    sum.list += clock.list;
    sum.attend += clock.attend;
  }
  const double share = wall_us / std::max(sum.rank + sum.fixed + sum.estimate + sum.list + sum.attend, 1e-9);
  report.rank_us = sum.rank * share;
  report.estimate_us = sum.estimate * share;
  report.union_us = sum.list * share;
  report.attend_us = (sum.fixed + sum.attend) * share;
}

void run_sparse(Team& team, const SparseStep& step, StepReport* report) {
  const auto start = Clock::now();
  const auto phases = [&](Worker& worker) {
    rank_phase(worker, step);
    worker.barrier();
    flow_phase(worker, step, report);
  };
  try {
    team.run(phases);
  } catch (...) {
    step.workspace.heads.clear();  // bits of tokens that no list was made of
    throw;
  }
  if (report == nullptr) return;
  report_sparse(step, *report);
  report_times(step.workspace, team.size(), std::chrono::duration<double, std::micro>(Clock::now() - start).count(), *report);
}

}  // namespace

Status decode_step(Team& team, Workspace& workspace, const Query& query, const KvView& kv, const LayerIndex* index,
                   const Options& options, float* out, float* lse, StepReport* report) {
  const auto start = Clock::now();
  const bool sparse = index != nullptr && !index->segments.empty() && options.method != Method::full && options.mass < 1 &&
                      kv.tokens >= options.min_context;
  workspace.reserve(team.size(), query, kv, sparse ? index : nullptr, options);
  if (sparse) {
    run_sparse(team, {query, kv, *index, options, workspace}, report);
  } else {
    team.run([&](Worker& worker) { attend_dense(worker, workspace, query, kv); });
    if (report != nullptr) report_dense(query, kv, *report);
  }
  const Shape& shape = query.shape;
  normalise(workspace.result.at(0), shape.q_heads, shape.v_head_dim, query.params.sink_logits, out, lse);
  if (report != nullptr) {
    report->total_us = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    if (!sparse) {
      report->rank_us = report->estimate_us = report->union_us = 0;
      report->attend_us = report->total_us;
    }
  }
  // A NaN or infinity anywhere in a head's rows ends in its sum or its outputs.
  const Partial result = workspace.result.at(0);
  for (int h = 0; h < shape.q_heads; ++h) {
    if (!std::isfinite(result.sum[h]) || std::isnan(result.maximum[h])) return Status::non_finite;
  }
  for (int i = 0; i < shape.q_heads * shape.v_head_dim; ++i) {
    if (!std::isfinite(out[i])) return Status::non_finite;
  }
  return Status::ok;
}

}  // namespace tactic
