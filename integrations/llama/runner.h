// One hooked backend of the engine: its graphs with Tactic's nodes in place of the attention nodes it takes.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "caches.h"
#include "crew.h"
#include "engine.h"
#include "shared.h"

namespace tactic::llama {

// An attention node is taken by giving the engine a list of nodes of our own, where a CUSTOM node with the same output and
// the same place stands for it: the engine's threads come into it as into any other node, the graph stays in one piece, and the
// engine's own nodes stay as they are. Nodes of prefill size stay too, with a CUSTOM node before them that keeps their last
// queries.
class Runner {
 public:
  using Compute = ggml_status (*)(ggml_backend_t, ggml_cgraph*);
  explicit Runner(Compute original) : compute_(original), workspace_(make_workspace()) {}

  ggml_status compute(ggml_backend_t backend, ggml_cgraph* graph);

 private:
  struct Job {
    Runner* runner = nullptr;
    std::shared_ptr<Layer> layer;
    Track* track = nullptr;  // null: only look at the queries
    AttentionNode at;
    std::array<std::int64_t, Settings::kMaxRows> tokens{};  // [rows] in the context of each row
  };

  void plan(ggml_cgraph* graph);
  void note_writes(ggml_cgraph* graph);
  void plan_node(ggml_tensor* node);
  void look_at_prompt(Job& job);
  bool take(Job& job);
  void insert(const Job& job, bool replaces);
  void decline(const ggml_tensor* node, const char* reason);

  static void enter(ggml_tensor* node, int rank, int size, void* job);
  void run(Job& job);
  void observe(Job& job);
  void attend(Job& job);
  void watch(Job& job);
  void attend_row(Job& job, int row, KvView& kv);
  Status attend_baseline(Job& job, const Query& query, const KvView& kv, float* out);
  void cluster(Job& job, const KvView& kv);
  const float* query_row(const Job& job, int row);
  void count_budgets(const Job& job, std::int64_t tokens);
  void finish_row(const Job& job, int row, const KvView& kv, const float* q, Status status);

  Compute compute_;
  WorkspacePtr workspace_;
  Crew crew_;
  MaskReader masks_;
  std::shared_ptr<const Settings> settings_;  // of the graph in progress
  Trace trace_;
  std::vector<ggml_tensor*> nodes_;
  std::vector<ggml_tensor> stand_ins_;  // never grows while a graph runs
  std::vector<Job> jobs_;
  std::vector<const char*> told_;  // reasons that were logged
  bool reclustered_ = false;       // in this graph: one layer a step, so that the pauses spread
  bool failed_ = false;

  // Scratch of a row.
  std::vector<float> query_;
  std::vector<std::int64_t> attended_, budget_;
  std::vector<float> estimated_;
  std::vector<std::uint64_t> bits_;
  StepReport report_;
  Selection selection_;                  // of a baseline
  std::vector<std::uint64_t> own_bits_;  // [q_heads, words] of it, when heads of a group differ
  std::vector<std::int64_t> own_;        // [q_heads] tokens a head would take by itself, always-attended ones included
};

}  // namespace tactic::llama
