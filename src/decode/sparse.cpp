#include "decode/sparse.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "select/loss.h"

namespace tactic {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}

// Columns of a KV head's table that one task of the ranking scores: 128 int8 centroids of 128 dims are 16 KB, half an L1.
constexpr int kRankColumns = 128;
// Fewest tokens worth a worker of their own: below, the merge of another partial costs more than the rows.
constexpr std::int64_t kFixedTokens = 32;

// Lanes of running sums and maxima: one chain of float additions would wait four cycles for each.
constexpr int kLanes = 16;

float sum_of(const float* x, int count) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
  }
  float sum = 0;
  for (; i < count; ++i) sum += x[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// The largest, NaN left out; -inf of none.
float max_of(const float* x, int count) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (; i < count; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

void attend_fixed(Worker& worker, const SparseStep& step) {
  const std::int64_t head_end = step.index.first();
  const std::int64_t tail_begin = step.index.last();
  const std::int64_t tail = step.kv.tokens - tail_begin;
  const std::int64_t total = head_end + tail;
  const std::int64_t workers = std::clamp<std::int64_t>(total / kFixedTokens, 1, worker.size());
  const std::int64_t first = std::min<std::int64_t>(worker.rank(), workers) * total / workers;
  const std::int64_t last = std::min<std::int64_t>(worker.rank() + 1, workers) * total / workers;
  // The worker's share of [0, head_end) then of [tail_begin, tokens).
  const Partial own = step.workspace.fixed.at(worker.rank());
  const std::int64_t in_head = std::max<std::int64_t>(0, std::min(last, head_end) - first);
  const std::int64_t in_tail = last - std::max(first, head_end);
  if (in_tail > 0) {
    attend_all(step.query, step.kv, {nullptr, tail_begin + std::max(first, head_end) - head_end, in_tail}, own);
    if (in_head > 0) {
      const Partial other = step.workspace.pieces.at(worker.rank());
      attend_all(step.query, step.kv, {nullptr, first, in_head}, other);
      merge(own, other, step.query.shape.q_heads, step.query.shape.v_head_dim);
    }
  } else {
    attend_all(step.query, step.kv, {nullptr, first, in_head}, own);
  }
}

// Fixed mass and a reference for all masses of the head: the largest of the fixed logits and the centroids'. Using the centroid
// alone, without its spread, keeps one wild cluster from pushing every other mass to zero.
void set_reference(const SparseStep& step, int kv_head, int workers) {
  HeadWork& work = step.head(kv_head);
  const HeadTable& table = step.table(kv_head);
  const int group = step.query.shape.group();
  for (int g = 0; g < group; ++g) {
    const float* logits = work.logits.data() + static_cast<std::int64_t>(g) * table.stride;
    float top = max_of(logits, table.count);
    for (int w = 0; w < workers; ++w) top = std::max(top, step.workspace.fixed.at(w, kv_head * group + g).maximum[0]);
    float mass = 0;
    for (int w = 0; w < workers; ++w) {
      const Partial part = step.workspace.fixed.at(w, kv_head * group + g);
      if (part.sum[0] > 0) mass += part.sum[0] * std::exp(part.maximum[0] - top);
    }
    work.reference[g] = top;
    work.fixed[g] = mass;
  }
}

// Promise mode keeps a promise about mass.
bool by_loss(const Options& options) { return options.goal == Goal::error && !options.promise; }

// One choice, the first or after verify: adds clusters to work.chosen and work.list from `at` on. Returns how many.
int choose_clusters(const SparseStep& step, const HeadTable& table, HeadWork& work, int at, SelectScratch& scratch) {
  const int group = step.query.shape.group();
  if (by_loss(step.options)) {
    return choose_by_loss(table, group, work.mass.data(), work.ripple.data(), work.fixed, loss_per_row(step.options.mass),
                          work.chosen.data(), work.list.data() + at, work.covered);
  }
  return choose(table, group, work.mass.data(), work.fixed, work.target, step.options.joint, work.chosen.data(),
                work.list.data() + at, work.covered, scratch);
}

void choose_tactic(const SparseStep& step, int kv_head, SelectScratch& scratch) {
  const HeadTable& table = step.table(kv_head);
  const Options& options = step.options;
  HeadWork& work = step.head(kv_head);
  const int group = step.query.shape.group();
  const float softcap = step.query.params.softcap;
  const float margin = step.index.margin.empty() ? 1.0f : step.index.margin[static_cast<std::size_t>(kv_head)];
  for (int g = 0; g < group; ++g) work.target[g] = 1 - margin * (1 - options.mass);
  half_variances(step.query, kv_head, table, work.half.data());
  const float* half = options.spread ? work.half.data() : nullptr;
  estimate_masses(table, group, work.logits.data(), half, work.reference, work.mass.data(), softcap);
  if (by_loss(options)) {
    const bool represented = options.tail_clusters > 0;  // without a tail every dropped cluster loses its mass
    representation_ripple(table, group, work.logits.data(), represented ? half : nullptr, work.ripple.data(), softcap);
  }
  work.chosen.fill(0);
  work.first_choice = work.all_choices = choose_clusters(step, table, work, 0, scratch);
}

}  // namespace

void rank_phase(Worker& worker, const SparseStep& step) {
  const auto start = Clock::now();
  const Shape& shape = step.query.shape;
  int first_task = 0;
  const int heads = step.ranks_by_head(worker.size()) ? 0 : shape.kv_heads;
  for (int task = step.workspace.next_column.fetch_add(1, std::memory_order_relaxed), h = 0; h < heads;) {
    const HeadTable& table = step.table(h);
    const int tasks = (table.count + kRankColumns - 1) / kRankColumns;
    if (task >= first_task + tasks) {
      first_task += tasks;
      ++h;
      continue;
    }
    const int column = (task - first_task) * kRankColumns;
    score_centroids(step.query, h, table, column, std::min(column + kRankColumns, table.count), step.head(h).logits.data());
    task = step.workspace.next_column.fetch_add(1, std::memory_order_relaxed);
  }
  const auto ranked = Clock::now();
  attend_fixed(worker, step);
  step.workspace.clocks[static_cast<std::size_t>(worker.rank())] = {.rank = microseconds(start, ranked),
                                                                    .fixed = microseconds(ranked, Clock::now())};
}

void choose_head(const SparseStep& step, int kv_head, int rank, int workers, WorkerClock& clock) {
  SelectScratch& scratch = step.workspace.scratch[static_cast<std::size_t>(rank)];
  HeadWork& work = step.head(kv_head);
  work.attended = work.sampled = work.count = 0;
  work.tail_count = work.first_choice = work.all_choices = 0;
  work.dense = !step.index.margin.empty() && step.index.margin[static_cast<std::size_t>(kv_head)] < 0;
  if (work.dense) {
    work.count = step.index.last() - step.index.first();
    std::fill_n(work.covered, step.query.shape.group(), 1.0f);
    return;
  }
  const HeadTable& table = step.table(kv_head);
  auto start = Clock::now();
  if (step.ranks_by_head(workers)) {
    score_centroids(step.query, kv_head, table, 0, table.count, work.logits.data());
    const auto ranked = Clock::now();
    clock.rank += microseconds(start, ranked);
    start = ranked;
  }
  set_reference(step, kv_head, workers);
  const bool paper = step.options.method == Method::paper;
  if (paper) {
    PaperReport report;
    choose_paper(step.query, step.kv, kv_head, table, work.logits.data(), work.fixed, work.reference, step.options,
                 work.bits.data(), work.budget, work.covered, &report, scratch);
    work.sampled = report.sampled;
  } else {
    choose_tactic(step, kv_head, scratch);
  }
  const auto chosen = Clock::now();
  if (paper) {
    work.count = take_tokens(work.bits.data(), step.words(), work.ids.data());
  } else {
    work.count = list_tokens(table, {work.list.data(), static_cast<std::size_t>(work.first_choice)}, work.ids.data());
  }
  clock.estimate += microseconds(start, chosen);
  clock.list += microseconds(chosen, Clock::now());
}

TokenList list_of(const SparseStep& step, int kv_head, std::int64_t first, std::int64_t count) {
  const HeadWork& work = step.head(kv_head);
  if (work.dense) return {nullptr, step.index.first() + first, count};
  return {work.ids.data() + first, 0, count};
}

void attend_piece(const SparseStep& step, int kv_head, int round, const TokenList& list, std::int64_t first, int slot,
                  const Neighbours& around) {
  const HeadWork& work = step.head(kv_head);
  const bool keep_logits = round == 0 && !work.dense && step.verifies();
  float* logits = keep_logits ? step.head(kv_head).token_logits.data() + first : nullptr;
  attend_list(step.query, step.kv, kv_head, list, step.workspace.pieces.at(slot, kv_head * step.query.shape.group()), logits,
              work.token_stride, around);
}

void verify_head(const SparseStep& step, int kv_head, int rank, WorkerClock& clock) {
  const auto start = Clock::now();
  const int group = step.query.shape.group();
  SelectScratch& scratch = step.workspace.scratch[static_cast<std::size_t>(rank)];
  HeadWork& work = step.head(kv_head);
  work.attended += work.count;
  if (work.dense || work.first_choice == 0) {
    work.count = 0;
    return;
  }
  const HeadTable& table = step.table(kv_head);
  const std::span<const std::int32_t> chosen{work.list.data(), static_cast<std::size_t>(work.first_choice)};
  sum_exact_masses(table, group, work.token_logits.data(), work.token_stride, work.reference, chosen, work.exact.data());
  float factor[kMaxGroup];
  std::fill_n(factor, group, 1.0f);
  if (step.options.tail_factor) tail_factors(table, group, work.mass.data(), work.exact.data(), chosen, factor, scratch);
  for (int g = 0; g < group; ++g) {
    float* mass = work.mass.data() + static_cast<std::int64_t>(g) * table.stride;
    const float* exact = work.exact.data() + static_cast<std::int64_t>(g) * table.stride;
    if (factor[g] != 1.0f) {
      for (int c = 0; c < table.count; ++c) mass[c] *= factor[g];
    }
    for (const std::int32_t c : chosen) mass[c] = exact[c];
  }
  const int added = choose_clusters(step, table, work, work.first_choice, scratch);
  work.all_choices = work.first_choice + added;
  work.count = list_tokens(table, {work.list.data() + work.first_choice, static_cast<std::size_t>(added)}, work.ids.data());
  clock.estimate += microseconds(start, Clock::now());
}

namespace {

// Dropped clusters that join by their mean V; their rows are asked for.
void choose_head_tail(const SparseStep& step, int kv_head, SelectScratch& scratch) {
  HeadWork& work = step.head(kv_head);
  if (step.options.method != Method::tactic || step.options.tail_clusters == 0 || work.dense) return;
  const HeadTable& table = step.table(kv_head);
  const int group = step.query.shape.group();
  float total[kMaxGroup];
  for (int g = 0; g < group; ++g) {
    const float* mass = work.mass.data() + static_cast<std::int64_t>(g) * table.stride;
    total[g] = work.fixed[g] + sum_of(mass, table.count);
  }
  work.tail_count =
      choose_tail(table, group, work.logits.data(), step.options.spread ? work.half.data() : nullptr, work.reference, total,
                  work.chosen.data(), step.options.tail_clusters, work.tail_list.data(), work.tail_weights.data(), scratch,
                  step.query.params.softcap, by_loss(step.options) ? loss_per_row(step.options.mass) : 0.0f, work.mass.data());
}

// add_tail works on the scale of `reference`; the larger of the two maxima keeps every factor at most one.
void add_head_tail(const SparseStep& step, int kv_head, const Partial& out) {
  const Shape& shape = step.query.shape;
  HeadWork& work = step.head(kv_head);
  for (int g = 0; g < shape.group(); ++g) {
    const float top = std::max(out.maximum[g], work.reference[g]);
    const float keep = std::exp(out.maximum[g] - top);
    if (keep != 1.0f) {
      for (int i = 0; i < shape.v_head_dim; ++i) out.output[g * shape.v_head_dim + i] *= keep;
      out.sum[g] *= keep;
    }
    out.maximum[g] = top;
    const float shift = std::exp(work.reference[g] - top);
    for (int i = 0; i < work.tail_count; ++i)
      work.tail_weights[static_cast<std::size_t>(g * step.options.tail_clusters + i)] *= shift;
  }
  add_tail(step.table(kv_head), shape.group(), shape.v_head_dim,
           {work.tail_list.data(), static_cast<std::size_t>(work.tail_count)}, work.tail_weights.data(),
           step.options.tail_clusters, out);
}

}  // namespace

void finish_head(const SparseStep& step, int kv_head, int rank, int workers, std::span<const int> slots) {
  const Shape& shape = step.query.shape;
  const int group = shape.group();
  Workspace& workspace = step.workspace;
  HeadWork& work = step.head(kv_head);
  work.attended += work.count;
  choose_head_tail(step, kv_head, workspace.scratch[static_cast<std::size_t>(rank)]);
  const int head = kv_head * group;
  const Partial out = workspace.result.at(0, head);
  const Partial own = workspace.fixed.at(0, head);
  std::copy_n(own.output, group * shape.v_head_dim, out.output);
  std::copy_n(own.maximum, group, out.maximum);
  std::copy_n(own.sum, group, out.sum);
  for (int w = 1; w < workers; ++w) merge(out, workspace.fixed.at(w, head), group, shape.v_head_dim);
  for (const int slot : slots) merge(out, workspace.pieces.at(slot, head), group, shape.v_head_dim);
  if (work.tail_count > 0) add_head_tail(step, kv_head, out);
}

}  // namespace tactic
