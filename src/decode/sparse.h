// The parts of a sparse step.
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

  bool verifies() const { return options.method == Method::tactic && options.verify; }
  std::int64_t words() const { return (kv.tokens + 63) / 64; }
  HeadWork& head(int kv_head) const { return workspace.heads[static_cast<std::size_t>(kv_head)]; }
  const HeadTable& table(int kv_head) const { return index.tables[static_cast<std::size_t>(kv_head)]; }
};

// SPMD: centroid logits of all KV heads; then always-attended tokens (before the first segment, after the last) into
// workspace.fixed. The caller places a barrier behind it.
void rank_phase(Worker& worker, const SparseStep& step);

// SPMD, behind the barrier: everything else, into workspace.result. No barrier inside (see flow.cpp).
void flow_phase(Worker& worker, const SparseStep& step, StepReport* report);

// ---- one KV head at a time, each called by one worker ----

// Masses, choice, list of tokens: HeadWork's ids and count.
void choose_head(const SparseStep& step, int kv_head, int rank, int workers, WorkerClock& clock);

// Attends ids [first, first + count) into a slot of workspace.pieces; writes token logits where verify needs them.
void attend_piece(const SparseStep& step, int kv_head, int round, std::int64_t first, std::int64_t count, int slot);

// Exact masses of the chosen, tail factors, one more choice; the list becomes what was added.
void verify_head(const SparseStep& step, int kv_head, int rank, WorkerClock& clock);

// Merges all workers' fixed tokens, the pieces in the given slots, and the tail into workspace.result.
void finish_head(const SparseStep& step, int kv_head, int rank, int workers, std::span<const int> slots);

}  // namespace tactic
