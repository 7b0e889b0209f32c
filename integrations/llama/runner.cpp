// Inside a graph: the engine's threads in one of our nodes.
#include "runner.h"

#include <algorithm>

#include "core/error.h"
#include "true_mass.h"

namespace tactic::llama {

void Runner::enter(ggml_tensor*, int rank, int size, void* data) {
  Job& job = *static_cast<Job*>(data);
  Runner& runner = *job.runner;
  if (job.track == nullptr && !runner.settings_->watches_columns()) {
    if (rank == 0) runner.run(job);
    return;
  }
  if (rank != 0) {
    runner.crew_.follow(rank);
    return;
  }
  runner.crew_.lead(size);
  runner.run(job);
  runner.crew_.dismiss();
}

// Nothing may be thrown into the engine.
void Runner::run(Job& job) {
  try {
    job.track != nullptr ? attend(job) : observe(job);
  } catch (const std::exception& error) {
    log_line("%s: %s", job.at.node->name, error.what());
    Shared::instance().note_failure(error.what());
    failed_ = true;
  }
}

void Runner::observe(Job& job) {
  const AttentionNode& at = job.at;
  const bool for_baselines_alone = settings_->mode() == Mode::stock;
  const int first = for_baselines_alone ? at.rows : std::max(0, at.rows - QueryMoment::kWindow);
  for (int row = first; row < at.rows; ++row) {
    job.layer->queries().push(at.shape, at.query(row, 0), at.query(row, 1) - at.query(row, 0));
  }
  watch(job);
  Shared::instance().count_observed();
}

// The prompt by token number, for methods that choose where it ends.
void Runner::watch(Job& job) {
  const AttentionNode& at = job.at;
  bool in_order = false;
  const std::int64_t end = count_visible(at.mask, at.rows - 1, in_order);
  if (end < at.rows) return;  // several sequences
  const QueryRows queries{at.query(0, 0), at.rows, at.query(1, 0) - at.query(0, 0), at.query(0, 1) - at.query(0, 0)};
  KvView kv = at.view();
  kv.tokens = end;
  job.layer->watch().see(crew_, queries, end - at.rows, kv, settings_->watches_columns() && in_order);
}

void Runner::attend(Job& job) {
  KvView kv = job.at.view();
  kv.block_table = job.track->block_table();
  kv.tokens = job.track->tokens();
  job.layer->take_offer(*job.track, kv);
  for (int row = 0; row < job.at.rows; ++row) {
    kv.tokens = job.tokens[static_cast<std::size_t>(row)];
    attend_row(job, row, kv);
  }
}

// [q_heads, head_dim] without gaps: as the engine has it, or gathered.
const float* Runner::query_row(const Job& job, int row) {
  const Shape& shape = job.at.shape;
  if (shape.q_heads == 1 || job.at.query(row, 1) - job.at.query(row, 0) == shape.head_dim) return job.at.query(row, 0);
  query_.resize(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.head_dim));
  for (int head = 0; head < shape.q_heads; ++head) {
    std::copy_n(job.at.query(row, head), shape.head_dim, query_.data() + head * shape.head_dim);
  }
  return query_.data();
}

void Runner::cluster(Job& job, const KvView& kv) {
  Sequence& sequence = job.track->sequence();
  const std::int64_t due = sequence.due(0, kv.tokens);
  if (due == 0 || job.track->given_up()) return;
  const bool further = !sequence.layer(0).segments.empty();
  if (further && reclustered_) return;
  reclustered_ = reclustered_ || further;
  try {
    job.layer->queries().hand_to(sequence, job.at.shape);
    const UpdateReport report = sequence.update(crew_, *workspace_, 0, kv, true);
    Shared::instance().count_clustering(report.seconds, report.clustered);
    if (log_level() >= 2) {
      log_line("layer %d: clustered %lld tokens in %.0f ms", job.layer->number(), static_cast<long long>(report.clustered),
               report.seconds * 1e3);
    }
  } catch (const std::exception& error) {
    log_line("layer %d: cannot cluster: %s; dense from here", job.layer->number(), error.what());
    sequence.clear();
    job.track->give_up();
  }
}

void Runner::attend_row(Job& job, int row, KvView& kv) {
  const AttentionNode& at = job.at;
  const Shape& shape = at.shape;
  const float* q = query_row(job, row);
  attended_.resize(static_cast<std::size_t>(shape.kv_heads));
  budget_.resize(static_cast<std::size_t>(shape.q_heads));
  estimated_.resize(static_cast<std::size_t>(shape.q_heads));
  report_ = {};
  report_.attended = attended_;
  report_.budget = budget_;
  report_.estimated_mass = estimated_;
  if (trace_.call != nullptr) {
    bits_.assign(static_cast<std::size_t>((kv.tokens + 63) / 64 * shape.kv_heads), 0);
    report_.token_bits = bits_;
  }
  own_bits_.clear();
  job.track->note_step(kv.tokens);
  AttentionParams params = at.params;
  params.sink_logits = at.sinks;
  const Query query{q, shape, params};
  const bool baseline = settings_->mode() == Mode::baseline;
  const bool dense = settings_->mode() == Mode::full || job.layer->number() < settings_->dense_layers() ||
                     (baseline && kv.tokens < settings_->options().min_context);
  Status status = Status::ok;
  if (dense) {
    status = decode_step(crew_, *workspace_, query, kv, nullptr, settings_->options(), at.output(row), nullptr, &report_);
  } else if (baseline) {
    status = attend_baseline(job, query, kv, at.output(row));
  } else {
    cluster(job, kv);
    status = job.track->sequence().attend(crew_, *workspace_, 0, q, kv, at.sinks, at.output(row), nullptr, &report_);
  }
  finish_row(job, row, kv, q, status);
}

void Runner::finish_row(const Job& job, int row, const KvView& kv, const float* q, Status status) {
  const Shape& shape = job.at.shape;
  job.layer->queries().push(shape, q, shape.head_dim);
  const bool sparse = std::any_of(attended_.begin(), attended_.end(), [&](std::int64_t n) { return n < kv.tokens; });
  Shared::instance().count_row(report_, kv.tokens, sparse);
  count_budgets(job, kv.tokens);
  // The engine's own kernel would hand on NaN as well; say it, since a wrong model or cache looks like this.
  if (status == Status::non_finite && log_level() >= 1) log_line("layer %d: NaN or infinity in attention", job.layer->number());
  if (trace_.call == nullptr) return;

  const std::vector<float> mass =
      trace_.true_mass ? true_masses(q, shape, job.at.params, kv, own_bits_.empty() ? bits_ : own_bits_) : std::vector<float>();
  const auto rows = [](const Rows& r) {
    return tactic_llama_rows{r.data, static_cast<std::int32_t>(r.type), r.dim, r.token_stride, r.head_stride};
  };
  tactic_llama_trace trace{};
  trace.size = sizeof trace;
  trace.layer = job.layer->number();
  trace.sparse = sparse ? 1 : 0;
  trace.q_heads = shape.q_heads;
  trace.kv_heads = shape.kv_heads;
  trace.head_dim = shape.head_dim;
  trace.v_head_dim = shape.v_head_dim;
  trace.tokens = kv.tokens;
  trace.cells = kv.block_table;
  trace.q = q;
  trace.out = job.at.output(row);
  trace.k = rows(kv.k);
  trace.v = rows(kv.v);
  trace.scale = job.at.params.scale;
  trace.attended = attended_.data();
  trace.budget = own_.data();
  trace.estimated_mass = estimated_.data();
  trace.true_mass = mass.empty() ? nullptr : mass.data();
  trace.token_bits = bits_.data();
  trace.query_token_bits = own_bits_.empty() ? nullptr : own_bits_.data();
  trace.prompt_tokens = job.track->prompt();
  trace_.call(&trace, trace_.user);
}

}  // namespace tactic::llama
