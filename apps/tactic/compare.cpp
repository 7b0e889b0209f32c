// One text through five kinds of attention: speed, and distance from the engine's own.
#include "compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"
#include "eval/statistics.h"
#include "kl.h"
#include "progress.h"
#include "state.h"

namespace tactic::program {
namespace {

struct Pass {
  std::string name;             // as in --method; stock_fa_on, stock_fa_off
  std::vector<double> seconds;  // [tokens] of a step, best over the rounds
  std::vector<double> kl;       // [tokens] KL(stock -fa on || this)
  double agreement = 0;         // share of steps with the same likeliest token
  tactic_llama_stats stats = {};

  double tokens_per_second() const {
    double sum = 0;
    for (const double s : seconds) sum += s;
    return sum > 0 ? static_cast<double>(seconds.size()) / sum : 0;
  }
  double bytes_share() const { return stats.dense_bytes > 0 ? stats.bytes / stats.dense_bytes : 1; }
};

// The forced tokens and what stock attention with -fa on says after each.
struct Reference {
  Tokens tokens;
  std::vector<float> logits;  // [tokens, vocabulary]
  std::size_t vocabulary = 0;

  std::span<const float> row(std::size_t step) const { return std::span(logits).subspan(step * vocabulary, vocabulary); }
};

Token likeliest_that_goes_on(const Model& model, std::span<const float> logits) {
  Token best = -1;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto token = static_cast<Token>(i);
    if (best >= 0 && !(logits[i] > logits[static_cast<std::size_t>(best)])) continue;
    if (!model.ends_answer(token)) best = token;
  }
  return best;
}

class Comparison {
 public:
  Comparison(Session& session, const CompareOptions& options)
      : session_(session), options_(options), prompt_(session.context().length()) {
    reference_.vocabulary = session.context().logits().size();
    last_prompt_token_ = session.prompt().closing.back();
  }

  bool generate(Pass& pass);
  bool force(Pass& pass, bool first_round);
  void make_plain_context();

 private:
  Context& context_of(const Pass& pass) { return pass.name == "stock_fa_off" ? *plain_ : session_.context(); }
  void select(const Pass& pass);
  bool warm(Context& context, Token token);

  Session& session_;
  const CompareOptions& options_;
  int prompt_;
  Token last_prompt_token_;
  Reference reference_;
  std::optional<Context> plain_;  // without flash attention
};

// The engine's state without flash attention is the same but for V transposed: no second reading of the document.
void Comparison::make_plain_context() {
  session_.context().truncate(prompt_);
  const std::vector<std::uint8_t> state = transpose_v(session_.context().save_state());
  plain_.emplace(session_.model(),
                 ContextOptions{.tokens = session_.context_tokens(), .threads = session_.threads(), .flash_attention = false});
  if (!plain_->load_state(state)) {
    throw Error(Status::unsupported, "the engine refuses the state without flash attention: leave out --compare for this model");
  }
}

void Comparison::select(const Pass& pass) {
  MethodOptions method = options_.method;
  method.method = pass.name.starts_with("stock") ? "stock" : pass.name;
  session_.plugin()->use(method);
}

// One step that is not timed: pages, caches and, where it is due, the clustering.
bool Comparison::warm(Context& context, Token token) {
  if (!context.decode(std::span(&token, 1))) return false;
  context.truncate(prompt_);
  return true;
}

bool Comparison::generate(Pass& pass) {
  select(pass);
  Context& context = session_.context();
  // The last token of the prompt again, for its logits: whatever ran before may have left others.
  context.truncate(prompt_ - 1);
  if (!context.decode(std::span(&last_prompt_token_, 1))) return false;
  Token next = likeliest_that_goes_on(session_.model(), context.logits());
  if (!warm(context, next)) return false;
  Progress progress("compare: stock -fa on", options_.tokens, "tokens");
  for (int step = 0; step < options_.tokens; ++step) {
    const auto start = Clock::now();
    if (!context.decode(std::span(&next, 1))) return false;
    pass.seconds.push_back(seconds_since(start));
    reference_.tokens.push_back(next);
    const auto logits = context.logits();
    reference_.logits.insert(reference_.logits.end(), logits.begin(), logits.end());
    next = likeliest_that_goes_on(session_.model(), logits);
    progress.update(step + 1);
  }
  progress.finish();
  context.truncate(prompt_);
  return true;
}

bool Comparison::force(Pass& pass, bool first_round) {
  select(pass);
  Context& context = context_of(pass);
  const Tokens& tokens = reference_.tokens;
  if (!warm(context, tokens.front())) return false;
  session_.plugin()->reset_stats();
  Progress progress("compare: " + pass.name, static_cast<double>(tokens.size()), "tokens");
  for (std::size_t step = 0; step < tokens.size(); ++step) {
    const auto start = Clock::now();
    if (!context.decode(std::span(&tokens[step], 1))) return false;
    const double seconds = seconds_since(start);
    if (first_round) {
      pass.seconds.push_back(seconds);
      const auto logits = context.logits();
      pass.kl.push_back(kl_divergence(reference_.row(step), logits));
      pass.agreement += largest(reference_.row(step)) == largest(logits) ? 1.0 / static_cast<double>(tokens.size()) : 0.0;
    } else {
      pass.seconds[step] = std::min(pass.seconds[step], seconds);
    }
    progress.update(static_cast<double>(step + 1));
  }
  progress.finish();
  pass.stats = session_.plugin()->stats();
  context.truncate(prompt_);
  return true;
}

void print_table(std::span<const Pass> passes, double best_stock) {
  fmt::print("\n{:<14} {:>9} {:>9} {:>10} {:>10} {:>7} {:>9} {:>7}\n", "attention", "tokens/s", "speedup", "KL mean", "KL p99",
             "top-1", "attended", "bytes");
  for (const Pass& pass : passes) {
    const bool ours = !pass.name.starts_with("stock");
    const bool is_reference = pass.name == "stock_fa_on";
    fmt::print("{:<14} {:>9.1f} {:>8.2f}x {:>10} {:>10} {:>7} {:>9} {:>7}\n",
               pass.name == "stock_fa_on" ? "stock -fa on" : (pass.name == "stock_fa_off" ? "stock -fa off" : pass.name),
               pass.tokens_per_second(), pass.tokens_per_second() / best_stock,
               is_reference ? "reference" : fmt::format("{:.5f}", eval::mean_of(pass.kl)),
               is_reference ? "" : fmt::format("{:.5f}", eval::quantile_of(pass.kl, 0.99)),
               is_reference ? "" : fmt::format("{:.1f}%", 100 * pass.agreement),
               ours ? fmt::format("{:.1f}%", 100 * pass.stats.attended_share) : "",
               ours ? fmt::format("{:.1f}%", 100 * pass.bytes_share()) : "");
  }
  fmt::print(
      "speedup: against the better of the engine's own two; KL and top-1: against stock -fa on, over the full vocabulary\n");
}

void write_figures(std::span<const Pass> passes, const std::string& method, nlohmann::ordered_json& json) {
  const Pass& on = passes[0];
  const Pass& off = passes[1];
  const Pass& full = passes[2];
  const Pass& paper = passes[4];
  const auto main = std::find_if(passes.begin(), passes.end(), [&](const Pass& p) { return p.name == method; });
  const Pass& chosen = main == passes.end() ? on : *main;
  json["decode_tokens_per_second"] = chosen.tokens_per_second();
  json["stock_fa_on_tokens_per_second"] = on.tokens_per_second();
  json["stock_fa_off_tokens_per_second"] = off.tokens_per_second();
  json["full_tokens_per_second"] = full.tokens_per_second();
  json["full_kl_mean"] = eval::mean_of(full.kl);
  json["full_top1_agreement"] = full.agreement;
  json["stock_noise_kl_mean"] = eval::mean_of(off.kl);
  json["stock_noise_top1_agreement"] = off.agreement;
  json["paper_tokens_per_second"] = paper.tokens_per_second();
  json["paper_kl_mean"] = eval::mean_of(paper.kl);
  json["paper_kl_p99"] = eval::quantile_of(paper.kl, 0.99);
  json["paper_top1_agreement"] = paper.agreement;
  json["paper_attended_share_mean"] = paper.stats.attended_share;
  json["paper_bytes_read_share"] = paper.bytes_share();
  json["kl_mean"] = eval::mean_of(chosen.kl);
  json["kl_p99"] = eval::quantile_of(chosen.kl, 0.99);
  json["top1_agreement"] = &chosen == &on ? 1.0 : chosen.agreement;
  json["attended_share_mean"] = chosen.stats.rows > 0 ? chosen.stats.attended_share : 1.0;
  if (!baseline_named(method)) json["estimated_mass_mean"] = chosen.stats.rows > 0 ? chosen.stats.estimated_mass : 1.0;
  json["bytes_read_share"] = chosen.bytes_share();
  json["index_bytes"] = chosen.stats.index_bytes;
}

}  // namespace

bool compare(Session& session, const CompareOptions& options, nlohmann::ordered_json& json) {
  std::vector<std::string> names = {"stock_fa_on", "stock_fa_off", "full", "tactic", "paper"};
  if (options.method.baseline()) names.push_back(options.method.method);
  std::vector<Pass> passes(names.size());
  for (std::size_t i = 0; i < passes.size(); ++i) passes[i].name = names[i];
  Comparison comparison(session, options);
  if (!comparison.generate(passes[0])) return false;
  comparison.make_plain_context();
  for (std::size_t i = 1; i < passes.size(); ++i) {
    if (!comparison.force(passes[i], true)) return false;
  }
  for (int round = 1; round < options.rounds; ++round) {
    for (std::size_t i = 0; i < passes.size(); ++i) {
      const std::size_t place = round % 2 == 1 ? passes.size() - 1 - i : i;
      if (!comparison.force(passes[place], false)) return false;
    }
  }
  print_table(passes, std::max(passes[0].tokens_per_second(), passes[1].tokens_per_second()));
  write_figures(passes, options.method.method, json);
  json["compared_tokens"] = options.tokens;
  json["rounds"] = options.rounds;
  return true;
}

}  // namespace tactic::program
