// Inside a graph: a row of a method that Tactic is compared with, and the counts that make budgets fair.
#include <algorithm>

#include "runner.h"

namespace tactic::llama {
namespace {

// Layers of the model, from the numbers of the caches: a prompt has gone through all of them before its first step.
int layers_of_model() {
  int layers = 0;
  Caches::instance().for_each([&](Layer& layer) { layers = std::max(layers, layer.number() + 1); });
  return layers;
}

}  // namespace

Status Runner::attend_baseline(Job& job, const Query& query, const KvView& kv, float* out) {
  Track& track = *job.track;
  std::optional<LayerBaseline>& state = track.baseline(settings_->generation());
  if (!state) {
    const LayerPlace place{std::max(0, job.layer->number()), std::max(1, layers_of_model())};
    state.emplace(query.shape, job.at.params, settings_->baseline_options(), settings_->baseline().budget(), place);
  }
  if (state->prompt() != track.prompt()) state->begin(crew_, kv, track.prompt(), job.layer->watch());
  state->select(crew_, query, kv, selection_);
  if (selection_.by_query_head && trace_.call != nullptr) {
    const std::size_t words = static_cast<std::size_t>(kv.tokens + 63) / 64;
    own_bits_.assign(words * selection_.tokens.size(), 0);
    for (std::size_t head = 0; head < selection_.tokens.size(); ++head) {
      for (const std::int32_t t : selection_.tokens[head])
        own_bits_[head * words + static_cast<std::size_t>(t / 64)] |= std::uint64_t{1} << (t % 64);
    }
  }
  return attend_selection(crew_, query, kv, selection_, out, nullptr, &report_);
}

// Tactic's own reports leave its always-attended tokens out of a head's budget; here they count, as windows and sinks do for
// others.
void Runner::count_budgets(const Job& job, std::int64_t tokens) {
  const LayerIndex& index = job.track->sequence().layer(0);
  const bool tactic = settings_->mode() == Mode::tactic || settings_->mode() == Mode::paper;
  const bool sparse = tactic && report_.rank_us > 0;  // a dense row counts all tokens already
  const std::int64_t always = sparse ? index.first() + tokens - index.last() : 0;
  own_.assign(budget_.begin(), budget_.end());
  for (std::int64_t& own : own_) own += always;
  // Generated tokens are always attended, unless they were clustered since.
  const std::int64_t prompt = job.track->prompt();
  const std::int64_t generated = tokens - (sparse ? std::max(prompt, index.last()) : prompt);
  Shared::instance().count_budgets(job.layer->number(), attended_, own_, generated, prompt);
}

}  // namespace tactic::llama
