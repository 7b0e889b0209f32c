// Softmax weights that prompt tokens receive: from the last queries (SnapKV and its kin) or from all (H2O).
#include <algorithm>
#include <cmath>

#include "baselines/rules.h"

namespace tactic {
namespace {

// One query row's weights over the first `count` tokens for the heads of a KV head, added to column. logits: scratch.
void add_row(const Query& query, const KvView& kv, int kv_head, std::int64_t count, std::vector<float>& logits, double* column) {
  const int group = query.shape.group();
  logits.resize(static_cast<std::size_t>(group) * static_cast<std::size_t>(count));
  score_list(query, kv, kv_head, {nullptr, 0, count}, logits.data(), count);
  for (int g = 0; g < group; ++g) {
    const std::span<float> row = std::span(logits).subspan(static_cast<std::size_t>(g * count), static_cast<std::size_t>(count));
    const float top = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (float& x : row) {
      x = std::exp(x - top);
      sum += static_cast<double>(x);
    }
    const double scale = 1 / sum;
    for (std::size_t t = 0; t < row.size(); ++t) column[t] += scale * static_cast<double>(row[t]);
  }
}

}  // namespace

void add_columns(Team& team, const QueryRows& queries, const Shape& shape, const AttentionParams& params, const KvView& kv,
                 std::int64_t first, double* columns, std::int64_t stride) {
  const auto width = static_cast<std::size_t>(first + queries.rows);
  const auto heads = static_cast<std::size_t>(shape.kv_heads);
  const auto dim = static_cast<std::size_t>(shape.head_dim);
  // Each worker sums for itself: rows of one KV head are shared among them.
  std::vector<std::vector<double>> own(static_cast<std::size_t>(team.size()));
  team.run([&](Worker& worker) {
    auto& sums = own[static_cast<std::size_t>(worker.rank())];
    sums.assign(heads * width, 0);
    std::vector<float> logits, q(static_cast<std::size_t>(shape.q_heads) * dim);
    for (int row = worker.rank(); row < queries.rows; row += worker.size()) {
      for (int h = 0; h < shape.q_heads; ++h) {
        const float* from = queries.q + row * queries.row_stride + h * queries.head_stride;
        std::copy_n(from, dim, q.data() + static_cast<std::size_t>(h) * dim);
      }
      for (std::size_t h = 0; h < heads; ++h) {
        add_row({q.data(), shape, params}, kv, static_cast<int>(h), first + row + 1, logits, sums.data() + h * width);
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
