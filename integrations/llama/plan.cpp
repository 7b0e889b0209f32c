// Before a graph runs: which of its attention nodes Tactic takes, and the list of nodes that the engine gets.
#include <algorithm>
#include <cstring>

#include "runner.h"

namespace tactic::llama {

ggml_status Runner::compute(ggml_backend_t backend, ggml_cgraph* graph) {
  jobs_.clear();
  try {
    plan(graph);
  } catch (const std::exception& error) {
    log_line("%s; the engine computes this graph", error.what());
    jobs_.clear();
  }
  if (jobs_.empty()) return compute_(backend, graph);
  ggml_cgraph own = *graph;
  own.nodes = nodes_.data();
  own.n_nodes = static_cast<int>(nodes_.size());
  own.uid = 0;
  const ggml_status status = compute_(backend, &own);
  for (Job& job : jobs_) job.layer.reset();
  return failed_ ? GGML_STATUS_FAILED : status;
}

void Runner::plan(ggml_cgraph* graph) {
  nodes_.clear();
  masks_.forget();
  failed_ = reclustered_ = false;
  std::size_t attention = 0;
  for (int i = 0; i < graph->n_nodes; ++i) {
    const ggml_tensor* node = graph->nodes[i];
    if (static_cast<int>(node->op) != ops().flash_attn_ext || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
    ++attention;
    // Layers must exist before the writes of the same graph are noted.
    AttentionNode at;
    if (read_attention(graph->nodes[i], at) == nullptr) Caches::instance().layer(at);
  }
  note_writes(graph);
  if (attention == 0) return;

  settings_ = Shared::instance().settings();
  trace_ = Shared::instance().trace();
  if (settings_->mode() == Mode::stock && !settings_->watches_columns()) return;
  crew_.muster();
  stand_ins_.clear();
  stand_ins_.reserve(attention);
  jobs_.reserve(attention);
  for (int i = 0; i < graph->n_nodes; ++i) plan_node(graph->nodes[i]);
}

void Runner::note_writes(ggml_cgraph* graph) {
  const std::uint32_t step = Caches::instance().next_step();
  for (int i = 0; i < graph->n_nodes; ++i) {
    const ggml_tensor* node = graph->nodes[i];
    if (node->view_src == nullptr || ops().empty(static_cast<int>(node->op)) || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0)
      continue;
    Caches::instance().note_write(node, step);
  }
}

void Runner::plan_node(ggml_tensor* node) {
  if (static_cast<int>(node->op) != ops().flash_attn_ext || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
    nodes_.push_back(node);
    return;
  }
  Job job;
  const char* reason = read_attention(node, job.at);
  if (reason == nullptr) {
    job.runner = this;
    job.layer = Caches::instance().layer(job.at);
    reason = job.layer->check(job.at);
  }
  if (reason != nullptr) {
    decline(node, reason);
    nodes_.push_back(node);
  } else if (job.at.rows > settings_->max_rows()) {
    look_at_prompt(job);
    nodes_.push_back(node);
  } else if (settings_->mode() != Mode::stock && take(job)) {
    insert(job, true);
  } else {
    nodes_.push_back(node);
  }
}

// The engine computes the node; its queries are kept, unless a window tells that the layer is none of ours.
void Runner::look_at_prompt(Job& job) {
  const std::span<const Visible> end = masks_.read(job.at.mask, 2, job.at.rows - 2);
  if (!end.empty()) job.layer->look_for_window(end[0], end[1]);
  if (const char* reason = job.layer->check(job.at)) return decline(job.at.node, reason);
  Caches::instance().set_watched(*job.layer);
  insert(job, false);
}

// Finds the sequence that the rows belong to. False: the engine computes the node.
bool Runner::take(Job& job) {
  const std::span<const Visible> rows = masks_.read(job.at.mask, job.at.rows);
  const char* reason = "the mask holds more than 0 and -infinity";
  if (!rows.empty()) job.track = job.layer->follow(rows, *settings_, reason);
  if (job.track == nullptr) {
    decline(job.at.node, reason);
    return false;
  }
  for (std::size_t row = 0; row < rows.size(); ++row) job.tokens[row] = rows[row].count;
  Caches::instance().set_recent(*job.layer);
  return true;
}

void Runner::insert(const Job& job, bool replaces) {
  jobs_.push_back(job);
  stand_ins_.push_back(*job.at.node);
  ggml_tensor& stand_in = stand_ins_.back();
  stand_in.op = static_cast<ggml_op>(ops().custom);
  const ggml_custom_op_params parameters{&Runner::enter, GGML_N_TASKS_MAX, &jobs_.back()};
  std::memcpy(stand_in.op_params, &parameters, sizeof parameters);
  if (!replaces) {
    // Writes nothing; its output must not look like the attention node's.
    stand_in.data = nullptr;
    stand_in.view_src = nullptr;
  }
  nodes_.push_back(&stand_in);
}

void Runner::decline(const ggml_tensor* node, const char* reason) {
  if (node->src[0]->ne[1] <= settings_->max_rows()) Shared::instance().count_declined();
  if (log_level() < 1 || std::find(told_.begin(), told_.end(), reason) != told_.end()) return;
  told_.push_back(reason);
  log_line("%s: left to the engine: %s", node->name, reason);
}

}  // namespace tactic::llama
