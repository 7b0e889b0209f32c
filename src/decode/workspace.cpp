#include "decode/workspace.h"

#include <algorithm>

namespace tactic {
namespace {

// Buffers that follow the context grow in steps of this many tokens, so that appending a token does not allocate.
constexpr std::int64_t kTokenGrain = 8192;

std::int64_t grain(std::int64_t tokens) { return (tokens + kTokenGrain) / kTokenGrain * kTokenGrain; }

}  // namespace

void WorkspaceDeleter::operator()(Workspace* workspace) const { delete workspace; }

WorkspacePtr make_workspace() { return WorkspacePtr(new Workspace); }

void PartialSet::reserve(int slots, int head_count, int dim) {
  heads = head_count;
  v_head_dim = dim;
  const auto n = static_cast<std::size_t>(slots) * static_cast<std::size_t>(head_count);
  output.resize(n * static_cast<std::size_t>(dim));
  maximum.resize(n);
  sum.resize(n);
}

Partial PartialSet::at(int slot, int head) {
  const std::size_t at = static_cast<std::size_t>(slot) * static_cast<std::size_t>(heads) + static_cast<std::size_t>(head);
  return {output.data() + at * static_cast<std::size_t>(v_head_dim), maximum.data() + at, sum.data() + at};
}

void Workspace::reserve(int workers, const Query& query, const KvView& kv, const LayerIndex* index, const Options& options) {
  const Shape& shape = query.shape;
  if (scratch.size() < static_cast<std::size_t>(workers)) scratch.resize(static_cast<std::size_t>(workers));
  if (clocks.size() < static_cast<std::size_t>(workers)) clocks.resize(static_cast<std::size_t>(workers));
  fixed.reserve(workers, shape.q_heads, shape.v_head_dim);
  pieces.reserve(workers, shape.q_heads, shape.v_head_dim);
  result.reserve(1, shape.q_heads, shape.v_head_dim);
  if (index == nullptr) return;

  for (TaskCounter& task : tasks) task.next.store(0, std::memory_order_relaxed);
  if (heads.size() < static_cast<std::size_t>(shape.kv_heads)) heads.resize(static_cast<std::size_t>(shape.kv_heads));
  const auto group = static_cast<std::size_t>(shape.group());
  for (int h = 0; h < shape.kv_heads; ++h) {
    HeadWork& work = heads[static_cast<std::size_t>(h)];
    const HeadTable& table = index->tables[static_cast<std::size_t>(h)];
    const auto stride = static_cast<std::size_t>(table.stride);
    for (Buffer<float>* matrix : {&work.logits, &work.mass, &work.exact, &work.ripple}) matrix->resize(group * stride);
    work.half.resize(group * table.parts.size());
    work.chosen.resize(stride);
    work.list.resize(stride);
    const auto tokens = static_cast<std::size_t>(grain(kv.tokens));
    if (work.bits.size() < tokens / 64) {
      work.bits.resize(tokens / 64);
      work.bits.fill(0);
    }
    work.ids.resize(tokens);
    work.token_stride = static_cast<std::int64_t>(tokens);
    if (options.method == Method::tactic && options.verify) work.token_logits.resize(group * tokens);
    work.tail_list.resize(static_cast<std::size_t>(options.tail_clusters));
    work.tail_weights.resize(group * static_cast<std::size_t>(options.tail_clusters));
  }
}

}  // namespace tactic
