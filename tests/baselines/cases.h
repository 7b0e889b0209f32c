// Layers for the baselines' tests: keys and queries that are mostly zero, or seeded, and a prompt that has been watched.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "baselines/baselines.h"
#include "support/kv.h"

namespace tactic::test {

using Lists = std::vector<std::vector<std::int32_t>>;

// A prompt of `prompt` tokens and some generated ones in one cache; queries of every token.
class WatchedCase {
 public:
  WatchedCase(const Shape& shape, std::int64_t prompt, std::int64_t generated, std::uint64_t seed = 1, float k_scale = 1,
              float scale = 0.125f)
      : prompt_(prompt),
        kv_({.shape = shape, .tokens = prompt + generated, .seed = seed, .k_scale = k_scale}),
        team_(make_thread_team(2)),
        watch_(shape, {.scale = scale}) {
    kv_.params().scale = scale;
    queries_ = kv_.normal(static_cast<std::size_t>((prompt + generated) * shape.q_heads * shape.head_dim), 1);
  }

  const Shape& shape() const { return kv_.spec().shape; }
  std::int64_t prompt() const { return prompt_; }
  KvCase& kv() { return kv_; }
  Team& team() { return *team_; }
  PromptWatch& watch() { return watch_; }
  float* query(std::int64_t token) { return queries_.data() + token * row(); }
  std::int64_t row() const { return std::int64_t{shape().q_heads} * shape().head_dim; }

  // Tokens [first, last) go by as prefill would show them.
  void see(std::int64_t first, std::int64_t last, bool columns = true) {
    watch_.see(*team_, {query(first), static_cast<int>(last - first), row(), shape().head_dim}, first, kv_.view(), columns);
  }
  KvView view(std::int64_t tokens) {
    KvView kv = kv_.view();
    kv.tokens = tokens;
    return kv;
  }
  Query query_row(std::int64_t token) { return {query(token), shape(), kv_.params()}; }

  // What a method attends to in the step of token `token`, begun where the prompt ends.
  Selection choose(const BaselineOptions& options, const Budget& budget, std::int64_t token, LayerPlace place = {}) {
    LayerBaseline layer(shape(), kv_.params(), options, budget, place);
    layer.begin(*team_, view(prompt_ + 1), prompt_, watch_);
    Selection selection;
    layer.select(*team_, query_row(token), view(token + 1), selection);
    return selection;
  }

 private:
  std::int64_t prompt_;
  KvCase kv_;
  std::unique_ptr<Team> team_;
  PromptWatch watch_;
  std::vector<float> queries_;
};

inline Budget tokens(double count, bool of_query_heads = false) {
  Budget budget;
  budget.amount = count;
  budget.of_query_heads = of_query_heads;
  return budget;
}

}  // namespace tactic::test
