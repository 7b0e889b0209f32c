// The methods' own arithmetic, each rule a function that a hand-worked case can check.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "baselines/baselines.h"

namespace tactic {

// PyramidKV: tokens of a layer when the mean over layers is `capacity`, window included. With B = capacity - window: from
// 2 B - floor(B / beta) in layer 0 in equal real steps to floor(B / beta), rounded (its code floors the step, and so overspends);
// a first layer that would exceed the prompt takes all of it and the last one more. A prompt that fits is kept whole.
std::int64_t pyramid_budget(std::int64_t capacity, int window, int beta, std::int64_t prompt, LayerPlace place);

// Numbers of the `count` largest scores, ties to the smaller number, ascending. count may exceed the number of scores.
std::vector<std::int32_t> largest(std::span<const float> scores, std::int64_t count);

// Pooling with stride 1 over `kernel` (odd) neighbours, same length. maximum: nothing beyond the ends; average: zeros beyond.
std::vector<float> pooled(std::span<const float> scores, int kernel, Pool pool);

// Ada-SnapKV: tokens for each head beside the window, from scores [heads, count] and B each. See AdaRule (not safeguard).
std::vector<std::int64_t> ada_budgets(std::span<const float> scores, int heads, std::int64_t chosen, float share, AdaRule rule);
// kvpress' rule: what each head keeps of [heads, count], `kept` each in the mean: its own best floor(share * capacity) (at least
// one) first, the rest to the best scores of all heads. window: how many newest tokens (no part of scores) are kept before.
std::vector<std::vector<std::int32_t>> ada_safeguard(std::span<const float> scores, int heads, std::int64_t capacity, int window,
                                                     float share);

// SnapKV's scores of tokens [0, prompt - window) for each KV head, [kv_heads, prompt - window]: softmax of each of the last
// `window` queries over all keys up to its own, summed over queries, mean over the group, pooled.
// q [window, q_heads, head_dim], unscaled.
std::vector<float> window_scores(Team& team, std::span<const float> q, const Shape& shape, const AttentionParams& params,
                                 const KvView& kv, std::int64_t prompt, const BaselineOptions& options);

// Adds to columns [kv_heads, stride], for queries of tokens [first, first + rows), the softmax weights of every token up to each
// query's own, summed over queries and group.
void add_columns(Team& team, const QueryRows& queries, const Shape& shape, const AttentionParams& params, const KvView& kv,
                 std::int64_t first, double* columns, std::int64_t stride);

// Quest: sum_d max(q_d low_d, q_d high_d), no less than q . k of any key within the bounds.
float page_bound(const float* q, const float* low, const float* high, std::size_t dim);

// The fewest of tokens [0, candidates), by `order` descending, with which every one of `heads` holds `mass` of its weights
// [heads, tokens], which sum to 1. The tokens behind the candidates count as held; the first `forced` are taken anyway.
// Ascending.
std::vector<std::int32_t> fewest_for_mass(std::span<const double> weights, int heads, std::int64_t candidates,
                                          std::span<const float> order, double mass, int forced);

// Ascending union of ascending lists.
void unite(std::span<const std::vector<std::int32_t>> lists, std::vector<std::int32_t>& out);

}  // namespace tactic
