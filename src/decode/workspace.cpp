#include "decode/workspace.h"

#include <algorithm>

namespace tactic {
namespace {

// Buffers that follow the context grow in steps of this many tokens, so that appending a token does not allocate.
constexpr std::int64_t kTokenGrain = 8192;

std::int64_t grain(std::int64_t tokens) { return (tokens + kTokenGrain) / kTokenGrain * kTokenGrain; }

// What the stages of select/ may need for a head's table, so that neither the first step of a worker nor a wider sample of
// Algorithm 1 allocates: rows of the table's columns (each padded by at most 64), and the sampled tokens.
void reserve_scratch(SelectScratch& scratch, const HeadTable& table, int group, std::int64_t tokens, const Options& options) {
  const auto grow = [](auto& buffer, std::int64_t size) {
    if (buffer.size() < static_cast<std::size_t>(size)) buffer.resize(static_cast<std::size_t>(size));
  };
  const std::int64_t row = table.stride + 64;
  grow(scratch.floats, row * (2 * group + 4));
  grow(scratch.ints, row * 4);
  if (options.method != Method::paper) return;
  const double share = static_cast<double>(options.fit_head) + 2.0 * static_cast<double>(options.fit_window);
  const auto sample = std::min<std::int64_t>(
      table.token_count, static_cast<std::int64_t>(group * (share * static_cast<double>(table.token_count) + 6)) + 1);
  const std::int64_t words = tokens / 64 + 1;
  grow(scratch.floats, group * sample);
  grow(scratch.ints, group * (2 * row + 1) + words + sample);
  grow(scratch.words, words + 2 * row);
}

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
  pieces.reserve(std::max(workers, 2 * pieces_of(workers)), shape.q_heads, shape.v_head_dim);
  result.reserve(1, shape.q_heads, shape.v_head_dim);
  if (index == nullptr) return;

  next_column.store(0, std::memory_order_relaxed);
  next_head.store(0, std::memory_order_relaxed);
  finished_heads.store(0, std::memory_order_relaxed);
  if (flows.size() < static_cast<std::size_t>(shape.kv_heads))
    flows = std::vector<HeadFlow>(static_cast<std::size_t>(shape.kv_heads));
  for (HeadFlow& flow : flows) {
    flow.round.store(-1, std::memory_order_relaxed);
    flow.next.store(0, std::memory_order_relaxed);
    flow.done.store(0, std::memory_order_relaxed);
    flow.pieces[0] = flow.pieces[1] = 0;
  }
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
    for (SelectScratch& own : scratch) reserve_scratch(own, table, shape.group(), grain(kv.tokens), options);
  }
}

}  // namespace tactic
