// Softmax weights that prompt tokens receive: from the last queries (SnapKV and its kin) or from all (H2O).
#include <algorithm>

#include "baselines/columns.h"
#include "baselines/rules.h"

namespace tactic {
namespace {

// One query head's keys, as a layer whose "group" is a block of that head's queries: a key is read once for all of them.
struct Block {
  KvView kv;
  Shape shape;
  std::vector<float> q;       // [rows, head_dim]
  std::vector<float> logits;  // [rows, tokens]

  Block(const KvView& all, const Shape& layer, int kv_head) : kv(all), shape{1, 1, layer.head_dim, layer.v_head_dim} {
    kv.k.data += kv_head * kv.k.head_stride;
    kv.v.data += kv_head * kv.v.head_stride;
    kv.kv_heads = 1;
  }
  // Rows [row, row + count) of head `head`, the first of which sees `visible` tokens, added to column.
  void add(const QueryRows& queries, int head, int row, int count, std::int64_t visible, const AttentionParams& params,
           double* column) {
    const auto dim = static_cast<std::size_t>(shape.head_dim);
    const std::int64_t tokens = visible + count - 1;
    shape.q_heads = count;
    q.resize(static_cast<std::size_t>(count) * dim);
    logits.resize(static_cast<std::size_t>(count) * static_cast<std::size_t>(tokens));
    for (int r = 0; r < count; ++r) {
      const float* from = queries.q + (row + r) * queries.row_stride + head * queries.head_stride;
      std::copy_n(from, dim, q.data() + static_cast<std::size_t>(r) * dim);
    }
    score_list({q.data(), shape, params}, kv, 0, {nullptr, 0, tokens}, logits.data(), tokens);
    add_weight_block(logits.data(), tokens, count, visible, column);
  }
};

}  // namespace

void add_columns(Team& team, const QueryRows& queries, const Shape& shape, const AttentionParams& params, const KvView& kv,
                 std::int64_t first, double* columns, std::int64_t stride) {
  const auto width = static_cast<std::size_t>(first + queries.rows);
  const auto heads = static_cast<std::size_t>(shape.kv_heads);
  const int blocks = (queries.rows + kColumnBlock - 1) / kColumnBlock;
  // Each worker sums for itself: blocks of one KV head are shared among them.
  std::vector<std::vector<double>> own(static_cast<std::size_t>(team.size()));
  team.run([&](Worker& worker) {
    auto& sums = own[static_cast<std::size_t>(worker.rank())];
    sums.assign(heads * width, 0);
    for (int head = 0; head < shape.q_heads; ++head) {
      const int kv_head = head / shape.group();
      Block block(kv, shape, kv_head);
      for (int b = worker.rank(); b < blocks; b += worker.size()) {
        const int row = b * kColumnBlock, count = std::min(kColumnBlock, queries.rows - row);
        block.add(queries, head, row, count, first + row + 1, params, sums.data() + static_cast<std::size_t>(kv_head) * width);
      }
    }
  });
  for (const auto& sums : own) {
    for (std::size_t h = 0; h < heads; ++h) {
      double* to = columns + h * static_cast<std::size_t>(stride);
      for (std::size_t t = 0; t < width; ++t) to[t] += sums[h * width + t];
    }
  }
}

std::vector<float> window_scores(Team& team, std::span<const float> q, const Shape& shape, const AttentionParams& params,
                                 const KvView& kv, std::int64_t prompt, const BaselineOptions& options) {
  const std::int64_t others = prompt - options.window;
  const std::int64_t row = std::int64_t{shape.q_heads} * shape.head_dim;
  std::vector<double> sums(static_cast<std::size_t>(shape.kv_heads * prompt), 0.0);
  add_columns(team, {q.data(), options.window, row, shape.head_dim}, shape, params, kv, others, sums.data(), prompt);
  std::vector<float> scores;
  std::vector<float> mean(static_cast<std::size_t>(others));
  for (int h = 0; h < shape.kv_heads; ++h) {
    for (std::int64_t t = 0; t < others; ++t)
      mean[static_cast<std::size_t>(t)] = static_cast<float>(sums[static_cast<std::size_t>(h * prompt + t)] / shape.group());
    const std::vector<float> head = pooled(mean, options.pool_kernel, options.pool);
    scores.insert(scores.end(), head.begin(), head.end());
  }
  return scores;
}

}  // namespace tactic
