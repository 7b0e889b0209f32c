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

  // Whether a head's centroids are ranked by the worker that chooses for it; with few heads they are spread over the team.
  bool ranks_by_head(int workers) const { return query.shape.kv_heads >= 2 * workers; }
  bool verifies() const { return options.method == Method::tactic && options.verify; }
  std::int64_t words() const { return (kv.tokens + 63) / 64; }
  HeadWork& head(int kv_head) const { return workspace.heads[static_cast<std::size_t>(kv_head)]; }
  const HeadTable& table(int kv_head) const { return index.tables[static_cast<std::size_t>(kv_head)]; }
};

// SPMD: centroid logits of all KV heads, unless they rank_by_head(); then always-attended tokens (before the first segment, after
// the last) into workspace.fixed. The caller places a barrier behind it.
void rank_phase(Worker& worker, const SparseStep& step);

// SPMD, behind the barrier: everything else, into workspace.result. No barrier inside (see flow.cpp).
void flow_phase(Worker& worker, const SparseStep& step, StepReport* report);

// ---- one KV head at a time, each called by one worker ----

// Masses, choice, list of tokens: HeadWork's ids and count.
void choose_head(const SparseStep& step, int kv_head, int rank, int workers, WorkerClock& clock);

// Tokens [first, first + count) of a head's list.
TokenList list_of(const SparseStep& step, int kv_head, std::int64_t first, std::int64_t count);

// Attends a part of a head's list, from number `first` on, into a slot of workspace.pieces; writes token logits where verify
// needs them.
void attend_piece(const SparseStep& step, int kv_head, int round, const TokenList& list, std::int64_t first, int slot,
                  const Neighbours& around);

// Exact masses of the chosen, tail factors, one more choice; the list becomes what was added.
void verify_head(const SparseStep& step, int kv_head, int rank, WorkerClock& clock);

// Merges all workers' fixed tokens, the pieces in the given slots, and the tail into workspace.result.
void finish_head(const SparseStep& step, int kv_head, int rank, int workers, std::span<const int> slots);

}  // namespace tactic
