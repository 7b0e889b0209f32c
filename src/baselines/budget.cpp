// From a budget to tokens for each head.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "baselines/baselines.h"
#include "baselines/rules.h"

namespace tactic {
namespace {

[[noreturn]] void reject(const std::string& message) { throw Error(Status::invalid_argument, message); }

// Heads that the result counts: query heads when each chooses for itself.
bool counts_query_heads(const BaselineOptions& options, const Budget& budget) {
  const Sharing sharing = sharing_of(options, budget);
  return sharing == Sharing::none || sharing == Sharing::united;
}

std::vector<double> layer_row(const Budget& budget, const Shape& shape, LayerPlace place) {
  const auto layer = static_cast<std::size_t>(place.layer);
  const auto heads = static_cast<std::size_t>(budget.of_query_heads ? shape.q_heads : shape.kv_heads);
  if (budget.table.size() != static_cast<std::size_t>(place.layers) || budget.table[layer].size() != heads) {
    reject("the budget's table has " + std::to_string(budget.table.size()) + " layers of " +
           std::to_string(budget.table.empty() ? 0 : budget.table.front().size()) + " heads, the model " +
           std::to_string(place.layers) + " of " + std::to_string(heads) + ": make it with the same model");
  }
  return budget.table[layer];
}

// [kv_heads] or [q_heads] from the other: a KV head's tokens for each of its query heads, or the mean over the group.
std::vector<double> for_heads(const std::vector<double>& row, bool from_query, bool to_query, const Shape& shape) {
  if (from_query == to_query) return row;
  const int group = shape.group();
  std::vector<double> out(static_cast<std::size_t>(to_query ? shape.q_heads : shape.kv_heads));
  for (int head = 0; head < static_cast<int>(out.size()); ++head) {
    const auto at = static_cast<std::size_t>(head);
    if (to_query) {
      out[at] = row[static_cast<std::size_t>(head / group)];
    } else {
      const auto first = row.begin() + static_cast<std::ptrdiff_t>(head) * group;
      out[at] = std::accumulate(first, first + group, 0.0) / group;
    }
  }
  return out;
}

}  // namespace

std::vector<std::int64_t> head_budgets(const BaselineOptions& options, const Budget& budget, const Shape& shape, LayerPlace place,
                                       std::int64_t prompt) {
  const bool query_heads = counts_query_heads(options, budget);
  const auto heads = static_cast<std::size_t>(query_heads ? shape.q_heads : shape.kv_heads);
  if (options.method == Baseline::oracle_top_p) return std::vector<std::int64_t>(heads, prompt);
  std::vector<std::int64_t> tokens;
  if (budget.table.empty()) {
    const double amount = budget.unit == Budget::Unit::share ? budget.amount * static_cast<double>(prompt) : budget.amount;
    tokens.assign(heads, std::llround(amount));
  } else {
    for (const double mean : for_heads(layer_row(budget, shape, place), budget.of_query_heads, query_heads, shape))
      tokens.push_back(std::llround(mean));
  }
  const std::int64_t least = least_budget(options);
  for (std::size_t head = 0; head < heads; ++head) {
    if (tokens[head] >= least) continue;
    const std::string where = budget.table.empty() ? ""
                                                   : " in layer " + std::to_string(place.layer) + ", " +
                                                         (query_heads ? "query head " : "KV head ") + std::to_string(head);
    reject("budget is " + std::to_string(tokens[head]) + " tokens" + where + ", must be at least " + std::to_string(least) +
           " for " + name_of(options.method) + ": give more, or a longer prompt");
  }
  if (options.method == Baseline::pyramidkv) {
    for (std::int64_t& t : tokens) t = pyramid_budget(t, options.window, options.pyramid_beta, prompt, place);
  }
  return tokens;
}

void check_budgets(const BaselineOptions& options, const Budget& budget, const Shape& shape, int layers, std::int64_t prompt) {
  for (int layer = 0; layer < layers; ++layer) head_budgets(options, budget, shape, {layer, layers}, prompt);
}

std::int64_t pyramid_budget(std::int64_t capacity, int window, int beta, std::int64_t prompt, LayerPlace place) {
  if (prompt < capacity || place.layers < 2) return capacity;
  const double chosen = static_cast<double>(capacity - window);  // B
  const double others = static_cast<double>(prompt - window);
  double least = std::floor(chosen / beta);
  double most = 2 * chosen - least;
  if (most >= others) {
    most = others;
    least = 2 * chosen - most;
  }
  const double step = (most - least) / (place.layers - 1);
  return std::llround(most - place.layer * step) + window;
}

}  // namespace tactic
