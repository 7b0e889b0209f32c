// Dense attention of a step: every token, all heads in one walk, split over the team.
#pragma once

#include "decode/workspace.h"

namespace tactic {

// SPMD with barriers inside. Leaves the merged, unnormalised result in workspace.result.
void attend_dense(Worker& worker, Workspace& workspace, const Query& query, const KvView& kv);

// SPMD, no barrier: merges the same head range of all workers' `from` into workspace.result's; heads are split over workers.
void merge_workers(Worker& worker, PartialSet& from, PartialSet& into);

}  // namespace tactic
