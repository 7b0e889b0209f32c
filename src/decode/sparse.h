// The phases of a sparse step, each SPMD over the team; the caller places the barriers between them.
#pragma once

#include "decode/workspace.h"

namespace tactic {

// Everything the phases of one step read.
struct SparseStep {
  const Query& query;
  const KvView& kv;
  const LayerIndex& index;
  const Options& options;
  Workspace& workspace;

  std::int64_t words() const { return (kv.tokens + 63) / 64; }
  HeadWork& head(int kv_head) const { return workspace.heads[static_cast<std::size_t>(kv_head)]; }
  const HeadTable& table(int kv_head) const { return index.tables[static_cast<std::size_t>(kv_head)]; }
};

// Centroid logits of all KV heads; then always-attended tokens (before the first segment, after the last) into workspace.fixed.
void rank_phase(Worker& worker, const SparseStep& step);

// Per KV head: masses, choice, list of tokens. Sets HeadWork up for attend_phase.
void choose_phase(Worker& worker, const SparseStep& step);

// Attends the lists of all KV heads, split into equal pieces of tokens, and adds them to workspace.fixed's slot of the worker.
// Writes token logits where verify needs them.
void attend_phase(Worker& worker, const SparseStep& step, bool first_round);

// Per KV head: exact masses of the chosen, tail factors, one more choice; the lists become what was added.
void verify_phase(Worker& worker, const SparseStep& step);

// Per KV head: merge of all workers' partials, tail, into workspace.result.
void finish_phase(Worker& worker, const SparseStep& step);

}  // namespace tactic
