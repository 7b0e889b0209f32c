// Methods that choose once, where the prompt ends.
#include <algorithm>
#include <limits>
#include <numeric>

#include "baselines/rules.h"

namespace tactic {
namespace {

std::vector<std::int32_t> range(std::int64_t first, std::int64_t last) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(last - first));
  std::iota(tokens.begin(), tokens.end(), static_cast<std::int32_t>(first));
  return tokens;
}

std::vector<std::int32_t> with_tail(std::vector<std::int32_t> tokens, std::int64_t first, std::int64_t last) {
  for (std::int64_t t = first; t < last; ++t) tokens.push_back(static_cast<std::int32_t>(t));
  return tokens;
}

[[noreturn]] void lacks(const char* method, const std::string& what) {
  throw Error(Status::invalid_state,
              std::string(method) + " needs " + what +
                  ": read the prompt with a method other than stock, or load_watch() what was saved with it");
}

}  // namespace

void LayerBaseline::keep(Team& team, const KvView& kv, const PromptWatch& watch) {
  const auto heads = static_cast<std::size_t>(shape_.kv_heads);
  kept_.assign(heads, {});
  if (*std::min_element(budgets_.begin(), budgets_.end()) >= prompt_) {
    for (auto& tokens : kept_) tokens = range(0, prompt_);
    return;
  }
  switch (options_.method) {
    case Baseline::streaming_llm:
      keep_ends();
      return;
    case Baseline::h2o:
      keep_heavy(watch);
      return;
    default:
      keep_looked_at(team, kv, watch);
  }
}

void LayerBaseline::keep_ends() {
  const std::int64_t sinks = std::max(options_.sinks, options_.forced_sinks);
  for (std::size_t h = 0; h < kept_.size(); ++h) {
    const std::int64_t budget = std::min(budgets_[h], prompt_);
    kept_[h] = with_tail(range(0, std::min(sinks, budget)), prompt_ - (budget - std::min(sinks, budget)), prompt_);
  }
}

// Ahead of everything else: first tokens that all methods keep.
void LayerBaseline::force_sinks(std::span<float> scores) const {
  const auto count = std::min(scores.size(), static_cast<std::size_t>(options_.forced_sinks));
  std::fill_n(scores.begin(), count, std::numeric_limits<float>::infinity());
}

void LayerBaseline::keep_heavy(const PromptWatch& watch) {
  const std::span<const double> columns = watch.columns(prompt_);
  if (columns.empty()) lacks("h2o", "the weights that all tokens of the prompt gave (watch_columns)");
  const auto prompt = static_cast<std::size_t>(prompt_);
  for (std::size_t h = 0; h < kept_.size(); ++h) {
    const std::int64_t budget = std::min(budgets_[h], prompt_);
    const std::int64_t recent = budget / 2;
    const auto column = columns.subspan(h * prompt, static_cast<std::size_t>(prompt_ - recent));
    std::vector<float> scores(column.begin(), column.end());
    force_sinks(scores);
    kept_[h] = with_tail(largest(scores, budget - recent), prompt_ - recent, prompt_);
  }
}

// SnapKV, PyramidKV, Ada-SnapKV: the same scores, other budgets.
void LayerBaseline::keep_looked_at(Team& team, const KvView& kv, const PromptWatch& watch) {
  const int window = options_.window;
  const std::int64_t others = prompt_ - window;
  std::vector<float> q;
  if (!watch.queries(prompt_, window, q)) {
    lacks(name_of(options_.method), "the queries of the prompt's last " + std::to_string(window) + " tokens");
  }
  std::vector<float> scores = window_scores(team, q, shape_, params_, kv, prompt_, options_);
  const auto row = [&](std::size_t h) {
    return std::span(scores).subspan(h * static_cast<std::size_t>(others), static_cast<std::size_t>(others));
  };
  for (std::size_t h = 0; h < kept_.size(); ++h) force_sinks(row(h));
  if (options_.method == Baseline::ada_snapkv) {
    // The layer's tokens are divided anew, so heads may have had different ones.
    const auto heads = static_cast<std::int64_t>(kept_.size());
    const std::int64_t capacity = std::accumulate(budgets_.begin(), budgets_.end(), std::int64_t{0}) / heads;
    if (options_.ada_rule == AdaRule::safeguard) {
      kept_ = ada_safeguard(scores, shape_.kv_heads, capacity, window, options_.ada_share);
      for (std::size_t h = 0; h < kept_.size(); ++h) {
        kept_[h] = with_tail(std::move(kept_[h]), others, prompt_);
        budgets_[h] = static_cast<std::int64_t>(kept_[h].size());
      }
      return;
    }
    budgets_ = ada_budgets(scores, shape_.kv_heads, capacity - window, options_.ada_share, options_.ada_rule);
    for (std::int64_t& b : budgets_) b += window;
  }
  for (std::size_t h = 0; h < kept_.size(); ++h) kept_[h] = with_tail(largest(row(h), budgets_[h] - window), others, prompt_);
}

}  // namespace tactic
