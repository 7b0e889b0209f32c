// One method on one layer of one sequence: from the end of the prompt through its steps.
#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "baselines/rules.h"

namespace tactic {

LayerBaseline::LayerBaseline(const Shape& shape, const AttentionParams& params, const BaselineOptions& options, Budget budget,
                             LayerPlace place)
    : shape_(shape), params_(params), options_(options), budget_(std::move(budget)), place_(place) {
  params_.sink_logits = nullptr;
  validate(options_);
}

void LayerBaseline::begin(Team& team, const KvView& kv, std::int64_t prompt, const PromptWatch& watch) {
  prompt_ = -1;
  bounded_ = 0;
  budgets_ = head_budgets(options_, budget_, shape_, place_, prompt);
  prompt_ = prompt;
  const bool once = options_.method != Baseline::quest && options_.method != Baseline::oracle_top_k &&
                    options_.method != Baseline::oracle_top_p;
  if (!once) return;
  try {
    KvView whole = kv;
    whole.tokens = prompt;
    keep(team, whole, watch);
  } catch (...) {
    prompt_ = -1;
    throw;
  }
}

void LayerBaseline::truncate(std::int64_t tokens) {
  bounded_ = std::min(bounded_, tokens);
  if (tokens < prompt_) prompt_ = -1;
}

void LayerBaseline::select(Team& team, const Query& query, const KvView& kv, Selection& out) {
  if (options_.method == Baseline::quest) {
    select_pages(team, query, kv, out);
  } else if (options_.method == Baseline::oracle_top_k || options_.method == Baseline::oracle_top_p) {
    select_by_weight(team, query, kv, out);
  } else {
    chosen_ = kept_;
    out.metadata_bytes = 0;
  }
  share_out(kv.tokens, out);
}

// From what was chosen to what is attended: generated tokens join, groups unite.
void LayerBaseline::share_out(std::int64_t tokens, Selection& out) const {
  const Sharing sharing = sharing_of(options_, budget_);
  const auto group = static_cast<std::size_t>(shape_.group());
  const auto q_heads = static_cast<std::size_t>(shape_.q_heads);
  out.by_query_head = sharing == Sharing::none;
  out.own.resize(q_heads);
  for (std::size_t h = 0; h < q_heads; ++h) {
    const auto& chosen = chosen_[sharing == Sharing::one ? h / group : h];
    out.own[h] = static_cast<std::int64_t>(chosen.size()) + tokens - prompt_;
  }
  out.tokens.resize(sharing == Sharing::none ? q_heads : static_cast<std::size_t>(shape_.kv_heads));
  for (std::size_t h = 0; h < out.tokens.size(); ++h) {
    auto& list = out.tokens[h];
    if (sharing == Sharing::united) {
      unite(std::span(chosen_).subspan(h * group, group), list);
    } else {
      list = chosen_[h];
    }
    const auto prompt_part = static_cast<std::ptrdiff_t>(list.size());
    list.resize(list.size() + static_cast<std::size_t>(tokens - prompt_));
    std::iota(list.begin() + prompt_part, list.end(), static_cast<std::int32_t>(prompt_));
  }
}

void unite(std::span<const std::vector<std::int32_t>> lists, std::vector<std::int32_t>& out) {
  out.clear();
  for (const auto& list : lists) out.insert(out.end(), list.begin(), list.end());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
}

}  // namespace tactic
