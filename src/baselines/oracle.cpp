// Oracles: choices by the exact weights, which cost as much to know as dense attention.
#include <algorithm>
#include <cmath>
#include <limits>

#include "baselines/rules.h"

namespace tactic {
namespace {

// [tokens] softmax weights of one query head, summing to 1, in double.
void softmax(const float* logits, std::int64_t tokens, double* weights) {
  const double top = static_cast<double>(*std::max_element(logits, logits + tokens));
  double sum = 0;
  for (std::int64_t t = 0; t < tokens; ++t) sum += weights[t] = std::exp(static_cast<double>(logits[t]) - top);
  for (std::int64_t t = 0; t < tokens; ++t) weights[t] /= sum;
}

}  // namespace

std::vector<std::int32_t> fewest_for_mass(std::span<const double> weights, int heads, std::int64_t candidates,
                                          std::span<const float> order, double mass, int forced) {
  const std::size_t tokens = weights.size() / static_cast<std::size_t>(heads);
  std::vector<double> reached(static_cast<std::size_t>(heads), 0.0);
  const auto enough = [&] { return std::all_of(reached.begin(), reached.end(), [&](double m) { return m >= mass; }); };
  const auto take = [&](std::size_t token) {
    for (std::size_t h = 0; h < reached.size(); ++h) reached[h] += weights[h * tokens + token];
  };
  for (std::size_t t = static_cast<std::size_t>(candidates); t < tokens; ++t) take(t);
  std::vector<std::int32_t> rest, taken;
  for (std::int32_t t = 0; t < candidates; ++t) {
    if (t < forced) {
      take(static_cast<std::size_t>(t));
      taken.push_back(t);
    } else {
      rest.push_back(t);
    }
  }
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = order[static_cast<std::size_t>(a)], y = order[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  // Sorted piece by piece, each twice as long: nearly always a small part of all tokens holds the mass.
  std::ptrdiff_t piece = 256;
  auto next = rest.begin();
  while (!enough() && next != rest.end()) {
    const auto end = rest.end() - next > piece ? next + piece : rest.end();
    std::partial_sort(next, end, rest.end(), before);
    for (; next != end && !enough(); ++next) {
      take(static_cast<std::size_t>(*next));
      taken.push_back(*next);
    }
    piece *= 2;
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

void LayerBaseline::select_by_weight(Team& team, const Query& query, const KvView& kv, Selection& out) {
  const auto tokens = static_cast<std::size_t>(kv.tokens);
  const auto group = static_cast<std::size_t>(shape_.group());
  const Sharing sharing = sharing_of(options_, budget_);
  const bool one = sharing == Sharing::one;
  chosen_.resize(static_cast<std::size_t>(one ? shape_.kv_heads : shape_.q_heads));
  weights_.resize(static_cast<std::size_t>(shape_.q_heads) * tokens);
  logits_.resize(weights_.size());
  team.run([&](Worker& worker) {
    std::vector<float> order(tokens);
    for (int kv_head = worker.rank(); kv_head < shape_.kv_heads; kv_head += worker.size()) {
      const auto h = static_cast<std::size_t>(kv_head);
      float* logits = logits_.data() + h * group * tokens;
      double* weights = weights_.data() + h * group * tokens;
      score_list(query, kv, kv_head, {nullptr, 0, kv.tokens}, logits, kv.tokens);
      for (std::size_t g = 0; g < group; ++g) softmax(logits + g * tokens, kv.tokens, weights + g * tokens);
      if (one) {
        for (std::size_t t = 0; t < tokens; ++t) {
          double sum = 0;
          for (std::size_t g = 0; g < group; ++g) sum += weights[g * tokens + t];
          order[t] = static_cast<float>(sum);
        }
        chosen_[h] = choose_heaviest({weights, group * tokens}, shape_.group(), order, h);
      } else {
        for (std::size_t g = 0; g < group; ++g) {
          const std::span<const float> own(logits + g * tokens, tokens);
          chosen_[h * group + g] = choose_heaviest({weights + g * tokens, tokens}, 1, own, h * group + g);
        }
      }
    }
  });
  out.metadata_bytes = 0;
}

std::vector<std::int32_t> LayerBaseline::choose_heaviest(std::span<const double> weights, int heads, std::span<const float> order,
                                                         std::size_t chooser) const {
  if (options_.method == Baseline::oracle_top_p) {
    return fewest_for_mass(weights, heads, prompt_, order, static_cast<double>(options_.mass), options_.forced_sinks);
  }
  std::vector<float> scores(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(prompt_));
  force_sinks(scores);
  return largest(scores, budgets_[chooser]);
}

}  // namespace tactic
