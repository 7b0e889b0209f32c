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

// Times of the phases, written by worker 0 at the barriers.
struct PhaseTimes {
  Clock::time_point at[8];
  int count = 0;
  void mark() { at[count++] = Clock::now(); }
  double us(int phase) const { return std::chrono::duration<double, std::micro>(at[phase + 1] - at[phase]).count(); }
};

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

// What the workers' clocks say of how a phase's wall time divides.
double first_share(const Workspace& workspace, int workers, TwoParts WorkerClock::*phase) {
  double first = 0;
  double all = 0;
  for (int w = 0; w < workers; ++w) {
    const TwoParts& parts = workspace.clocks[static_cast<std::size_t>(w)].*phase;
    first += parts.first;
    all += parts.first + parts.second;
  }
  return all > 0 ? first / all : 1;
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

// Tokens that a head attended, for studies: rebuilt from its lists, since the phases clear their bitmaps.
void report_tokens(const SparseStep& step, bool first_round, StepReport& report) {
  const std::int64_t words = step.words();
  for (int h = 0; h < step.query.shape.kv_heads; ++h) {
    std::uint64_t* bits = report.token_bits.data() + h * words;
    const HeadWork& work = step.head(h);
    if (first_round) {
      std::fill_n(bits, words, 0);
      mark_range(bits, 0, step.index.first());
      mark_range(bits, step.index.last(), step.kv.tokens);
      if (work.dense) mark_range(bits, step.index.first(), step.index.last());
    }
    if (work.dense) continue;
    for (std::int64_t i = 0; i < work.count; ++i) {
      const std::int32_t t = work.ids[static_cast<std::size_t>(i)];
      bits[t / 64] |= std::uint64_t{1} << (t % 64);
    }
  }
}

void run_sparse(Team& team, const SparseStep& step, StepReport* report) {
  Workspace& workspace = step.workspace;
  const bool verify = step.options.method == Method::tactic && step.options.verify;
  const bool report_bits = report != nullptr && !report->token_bits.empty();
  PhaseTimes times;
  team.run([&](Worker& worker) {
    const bool lead = worker.rank() == 0;
    const auto phase_end = [&] {
      worker.barrier();
      if (lead) times.mark();
    };
    if (lead) times.mark();
    rank_phase(worker, step);
    phase_end();
    choose_phase(worker, step);
    phase_end();
    if (lead && report_bits) report_tokens(step, true, *report);
    attend_phase(worker, step, true);
    phase_end();
    if (verify) {
      verify_phase(worker, step);
      phase_end();
      if (lead && report_bits) report_tokens(step, false, *report);
      attend_phase(worker, step, false);
      phase_end();
    }
    finish_phase(worker, step);
  });
  if (report == nullptr) return;
  times.mark();
  report_sparse(step, *report);
  const double rank_share = first_share(workspace, team.size(), &WorkerClock::rank);
  const double choose_share = first_share(workspace, team.size(), &WorkerClock::choose);
  report->rank_us = times.us(0) * rank_share;
  report->estimate_us = times.us(1) * choose_share + (verify ? times.us(3) : 0);
  report->union_us = times.us(1) * (1 - choose_share);
  report->attend_us = times.us(0) * (1 - rank_share) + times.us(2);
  for (int phase = verify ? 4 : 3; phase + 1 < times.count; ++phase) report->attend_us += times.us(phase);
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
