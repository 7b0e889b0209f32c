#include "decode/dense.h"

#include <algorithm>

namespace tactic {

void merge_workers(Worker& worker, PartialSet& from, PartialSet& into) {
  const auto [first, last] = worker.share(from.heads);
  const auto heads = static_cast<int>(last - first);
  if (heads == 0) return;
  const int head = static_cast<int>(first);
  const Partial out = into.at(0, head);
  const Partial own = from.at(0, head);
  std::copy_n(own.output, heads * from.v_head_dim, out.output);
  std::copy_n(own.maximum, heads, out.maximum);
  std::copy_n(own.sum, heads, out.sum);
  for (int w = 1; w < worker.size(); ++w) merge(out, from.at(w, head), heads, from.v_head_dim);
}

void attend_dense(Worker& worker, Workspace& workspace, const Query& query, const KvView& kv) {
  const auto [first, last] = worker.share(kv.tokens);
  attend_all(query, kv, {nullptr, first, last - first}, workspace.fixed.at(worker.rank()));
  worker.barrier();
  merge_workers(worker, workspace.fixed, workspace.result);
}

}  // namespace tactic
