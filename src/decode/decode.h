// One decode step of one layer: rank, estimate, choose, attend, verify, tail, merge.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/attend.h"
#include "core/error.h"
#include "core/options.h"
#include "core/team.h"
#include "core/view.h"
#include "select/select.h"

namespace tactic {

// What a layer knows of its clustered tokens.
struct LayerIndex {
  std::vector<std::shared_ptr<const Segment>> segments;  // ascending, contiguous from the first clustered token
  std::vector<HeadTable> tables;                         // [kv_heads], over all segments
  std::vector<float> margin;  // [kv_heads] rho of promise mode: internal target 1 - rho (1 - P); < 0: the head runs dense

  std::int64_t first() const { return segments.empty() ? 0 : segments.front()->first; }
  std::int64_t last() const { return segments.empty() ? 0 : segments.back()->last; }
};

// What a step did, when asked. Spans are the caller's, or empty.
struct StepReport {
  std::span<std::int64_t> attended;     // [kv_heads] K/V rows attended, always-attended ones included
  std::span<float> estimated_mass;      // [q_heads] share of the mass that the step believes it reached
  std::span<std::int64_t> budget;       // [q_heads] tokens the head alone would take (`paper`: k of Algorithm 1)
  std::span<std::uint64_t> token_bits;  // [kv_heads, words] bitmap of attended tokens, words = ceil(tokens / 64)
  double bytes = 0;                     // K, V and metadata read
  double dense_bytes = 0;               // K and V of all tokens
  double rank_us = 0, estimate_us = 0, union_us = 0, attend_us = 0, total_us = 0;  // wall time of the stages
};

// Scratch of a team for steps of any layer. Grows to what a step needs and is kept: a warm step allocates nothing.
class Workspace;
struct WorkspaceDeleter {
  void operator()(Workspace* workspace) const;
};
using WorkspacePtr = std::unique_ptr<Workspace, WorkspaceDeleter>;
WorkspacePtr make_workspace();

// Attention of one query row over tokens 0 .. kv.tokens - 1. index null or without segments, method full, mass 1, or a context
// below min_context: dense. out [q_heads, v_head_dim]; lse [q_heads] (base e) or null; report or null.
// Returns Status::non_finite if some head's result is NaN or infinite (that head's output is then NaN), else ok.
Status decode_step(Team& team, Workspace& workspace, const Query& query, const KvView& kv, const LayerIndex* index,
                   const Options& options, float* out, float* lse, StepReport* report);

namespace reference {
// The same from the references of the rooms, one thread.
Status decode_step(const Query& query, const KvView& kv, const LayerIndex* index, const Options& options, float* out, float* lse,
                   StepReport* report);
}  // namespace reference

}  // namespace tactic
