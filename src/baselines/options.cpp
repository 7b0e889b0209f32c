// Names, ranges, and budgets as text.
#include <charconv>
#include <cmath>
#include <iterator>

#include "baselines/baselines.h"

namespace tactic {
namespace {

const char* const kNames[kBaselines] = {"quest",      "streamingllm", "snapkv",       "pyramidkv",
                                        "ada-snapkv", "h2o",          "oracle-top-k", "oracle-top-p"};

void in_range(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return;
  const auto text = [](double x) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, x).ptr;
    return std::string(digits, end);
  };
  throw Error(Status::invalid_argument,
              std::string(field) + " is " + text(value) + ", must be in [" + text(low) + ", " + text(high) + "]");
}

}  // namespace

const char* name_of(Baseline baseline) { return kNames[static_cast<int>(baseline)]; }

std::optional<Baseline> baseline_named(std::string_view name) {
  for (int i = 0; i < kBaselines; ++i) {
    if (name == kNames[i]) return static_cast<Baseline>(i);
  }
  return std::nullopt;
}

void validate(const BaselineOptions& o) {
  in_range("method", static_cast<int>(o.method), 0, kBaselines - 1);
  in_range("sharing", static_cast<int>(o.sharing), 0, 3);
  if (!(o.mass > 0 && o.mass <= 1)) throw Error(Status::invalid_argument, "mass must be in (0, 1]");
  in_range("page_tokens", o.page_tokens, 1, 4096);
  in_range("window_tokens", o.window, 1, PromptWatch::kKept);
  in_range("pool_kernel", o.pool_kernel, 1, 63);
  if (o.pool_kernel % 2 == 0) {
    throw Error(Status::invalid_argument, "pool_kernel is " + std::to_string(o.pool_kernel) + ", must be odd");
  }
  in_range("pool", static_cast<int>(o.pool), 0, 1);
  in_range("streaming_sinks", o.sinks, 0, 1024);
  in_range("forced_sinks", o.forced_sinks, 0, 1024);
  in_range("pyramid_beta", o.pyramid_beta, 1, 1000);
  in_range("ada_share", static_cast<double>(o.ada_share), 0, 1);
  in_range("ada_rule", static_cast<int>(o.ada_rule), 0, 2);
}

std::int64_t least_budget(const BaselineOptions& o) {
  switch (o.method) {
    case Baseline::quest:
      return 3 * std::int64_t{o.page_tokens};
    case Baseline::streaming_llm:
      return std::max(o.sinks, o.forced_sinks) + 1;
    case Baseline::snapkv:
    case Baseline::pyramidkv:
    case Baseline::ada_snapkv:
      return o.window + std::max(1, o.forced_sinks);
    case Baseline::h2o:
      return 2 * std::int64_t{std::max(1, o.forced_sinks)};
    case Baseline::oracle_top_k:
      return std::max(1, o.forced_sinks);
    case Baseline::oracle_top_p:
      return 0;
  }
  return 0;
}

Budget budget_of(std::string_view text) {
  const bool share = !text.empty() && text.back() == '%';
  const std::string_view digits = share ? text.substr(0, text.size() - 1) : text;
  Budget budget;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), budget.amount);
  const bool read = error == std::errc() && end == digits.data() + digits.size() && std::isfinite(budget.amount);
  if (share) {
    budget.unit = Budget::Unit::share;
    budget.amount /= 100;
  }
  const bool fits =
      share ? budget.amount > 0 && budget.amount <= 1 : budget.amount >= 1 && budget.amount == std::floor(budget.amount);
  if (!read || !fits) {
    throw Error(Status::invalid_argument,
                "budget is '" + std::string(text) + "', must be a whole number of tokens (1024) or a share of the prompt (6.5%)");
  }
  return budget;
}

Sharing sharing_of(const BaselineOptions& options, const Budget& budget) {
  const bool chooses_each_step =
      options.method == Baseline::quest || options.method == Baseline::oracle_top_k || options.method == Baseline::oracle_top_p;
  if (!chooses_each_step) return Sharing::one;
  if (options.sharing != Sharing::natural) return options.sharing;
  if (options.method == Baseline::oracle_top_p) return Sharing::united;
  return budget.of_query_heads ? Sharing::none : Sharing::one;
}

}  // namespace tactic
