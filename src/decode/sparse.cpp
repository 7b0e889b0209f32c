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

void list_tokens(const SparseStep& step, HeadWork& work, const HeadTable& table, std::span<const std::int32_t> clusters) {
  mark_tokens(table, clusters, work.bits.data());
  work.count = take_tokens(work.bits.data(), step.words(), work.ids.data());
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
  for (int task = step.workspace.take(Task::rank), h = 0; h < shape.kv_heads;) {
    const HeadTable& table = step.table(h);
    const int tasks = (table.count + kRankColumns - 1) / kRankColumns;
    if (task >= first_task + tasks) {
      first_task += tasks;
      ++h;
      continue;
    }
    const int column = (task - first_task) * kRankColumns;
    score_centroids(step.query, h, table, column, std::min(column + kRankColumns, table.count), step.head(h).logits.data());
    task = step.workspace.take(Task::rank);
  }
  const auto ranked = Clock::now();
  attend_fixed(worker, step);
  step.workspace.clocks[static_cast<std::size_t>(worker.rank())].rank = {microseconds(start, ranked),
                                                                         microseconds(ranked, Clock::now())};
}

void choose_phase(Worker& worker, const SparseStep& step) {
  const int kv_heads = step.query.shape.kv_heads;
  const auto rank = static_cast<std::size_t>(worker.rank());
  SelectScratch& scratch = step.workspace.scratch[rank];
  TwoParts clock;
  for (int h; (h = step.workspace.take(Task::choose)) < kv_heads;) {
    const auto start = Clock::now();
    HeadWork& work = step.head(h);
    work.attended = work.sampled = work.count = 0;
    work.tail_count = work.first_choice = work.all_choices = 0;
    work.dense = !step.index.margin.empty() && step.index.margin[static_cast<std::size_t>(h)] < 0;
    if (work.dense) {
      work.count = step.index.last() - step.index.first();
      std::fill_n(work.covered, step.query.shape.group(), 1.0f);
      continue;
    }
    set_reference(step, h, worker.size());
    if (step.options.method == Method::paper) {
      PaperReport report;
      choose_paper(step.query, step.kv, h, step.table(h), work.logits.data(), work.fixed, work.reference, step.options,
                   work.bits.data(), work.budget, work.covered, &report, scratch);
      work.sampled = report.sampled;
    } else {
      choose_tactic(step, h, scratch);
    }
    const auto chosen = Clock::now();
    if (step.options.method == Method::paper) {
      work.count = take_tokens(work.bits.data(), step.words(), work.ids.data());
    } else {
      list_tokens(step, work, step.table(h), {work.list.data(), static_cast<std::size_t>(work.first_choice)});
    }
    clock.first += microseconds(start, chosen);
    clock.second += microseconds(chosen, Clock::now());
  }
  step.workspace.clocks[rank].choose = clock;
}

void attend_phase(Worker& worker, const SparseStep& step, bool first_round) {
  const Shape& shape = step.query.shape;
  Workspace& workspace = step.workspace;
  const bool keep_logits = first_round && step.options.method == Method::tactic && step.options.verify;
  std::int64_t total = 0;
  for (int h = 0; h < shape.kv_heads; ++h) total += step.head(h).count;
  const auto [first, last] = worker.share(total);
  std::int64_t begin = 0;
  for (int h = 0; h < shape.kv_heads; ++h) {
    HeadWork& work = step.head(h);
    const std::int64_t from = std::max(first, begin) - begin;
    const std::int64_t to = std::min(last, begin + work.count) - begin;
    begin += work.count;
    if (from >= to) continue;
    const TokenList list =
        work.dense ? TokenList{nullptr, step.index.first() + from, to - from} : TokenList{work.ids.data() + from, 0, to - from};
    const int head = h * shape.group();
    const Partial piece = workspace.pieces.at(worker.rank(), head);
    float* logits = keep_logits && !work.dense ? work.token_logits.data() + from : nullptr;
    attend_list(step.query, step.kv, h, list, piece, logits, work.token_stride);
    merge(workspace.fixed.at(worker.rank(), head), piece, shape.group(), shape.v_head_dim);
  }
}

void verify_phase(Worker& worker, const SparseStep& step) {
  const int kv_heads = step.query.shape.kv_heads;
  const int group = step.query.shape.group();
  SelectScratch& scratch = step.workspace.scratch[static_cast<std::size_t>(worker.rank())];
  for (int h; (h = step.workspace.take(Task::verify)) < kv_heads;) {
    HeadWork& work = step.head(h);
    work.attended += work.count;
    if (work.dense || work.first_choice == 0) {
      work.count = 0;
      continue;
    }
    const HeadTable& table = step.table(h);
    const std::span<const std::int32_t> chosen{work.list.data(), static_cast<std::size_t>(work.first_choice)};
    sum_exact_masses(table, group, {work.ids.data(), static_cast<std::size_t>(work.count)}, work.token_logits.data(),
                     work.token_stride, work.reference, chosen, work.exact.data(), scratch);
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
    list_tokens(step, work, table, {work.list.data() + work.first_choice, static_cast<std::size_t>(added)});
  }
}

void finish_phase(Worker& worker, const SparseStep& step) {
  const Shape& shape = step.query.shape;
  const int group = shape.group();
  Workspace& workspace = step.workspace;
  SelectScratch& scratch = workspace.scratch[static_cast<std::size_t>(worker.rank())];
  for (int h; (h = workspace.take(Task::finish)) < shape.kv_heads;) {
    HeadWork& work = step.head(h);
    work.attended += work.count;
    const int head = h * group;
    const Partial out = workspace.result.at(0, head);
    const Partial own = workspace.fixed.at(0, head);
    std::copy_n(own.output, group * shape.v_head_dim, out.output);
    std::copy_n(own.maximum, group, out.maximum);
    std::copy_n(own.sum, group, out.sum);
    for (int w = 1; w < worker.size(); ++w) merge(out, workspace.fixed.at(w, head), group, shape.v_head_dim);
    if (step.options.method != Method::tactic || step.options.tail_clusters == 0 || work.dense) continue;

    const HeadTable& table = step.table(h);
    float total[kMaxGroup];
    for (int g = 0; g < group; ++g) {
      const float* mass = work.mass.data() + static_cast<std::int64_t>(g) * table.stride;
      total[g] = work.fixed[g] + sum_of(mass, table.count);
    }
    work.tail_count = choose_tail(table, group, work.logits.data(), step.options.spread ? work.half.data() : nullptr,
                                  work.reference, total, work.chosen.data(), step.options.tail_clusters, work.tail_list.data(),
                                  work.tail_weights.data(), scratch, step.query.params.softcap);
    if (by_loss(step.options)) {
      work.tail_count = keep_worthy_tail(group, total, loss_per_row(step.options.mass),
                                         {work.tail_list.data(), static_cast<std::size_t>(work.tail_count)},
                                         work.tail_weights.data(), step.options.tail_clusters);
    }
    // add_tail works on the scale of `reference`; the larger of the two maxima keeps every factor at most one.
    for (int g = 0; g < group; ++g) {
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
    add_tail(table, group, shape.v_head_dim, {work.tail_list.data(), static_cast<std::size_t>(work.tail_count)},
             work.tail_weights.data(), step.options.tail_clusters, out);
  }
}

}  // namespace tactic
