// The table of the baselines' settings; budgets from a number or a file.
#include "baseline_settings.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "budget_file.h"
#include "values.h"

namespace tactic::llama {
namespace {

const char* const kNames[] = {"budget",       "budget_head",   "budget_by",   "sharing", "forced_sinks",
                              "page_tokens",  "window_tokens", "pool_kernel", "pool",    "streaming_sinks",
                              "pyramid_beta", "ada_share",     "ada_rule"};
const char* const kHeads[] = {"kv", "query"};
const char* const kBy[] = {"all", "layer", "head"};
const char* const kSharing[] = {"natural", "none", "united", "one"};
const char* const kPools[] = {"max", "average"};
const char* const kAdaRules[] = {"code", "paper", "safeguard"};

struct WholeNumber {
  const char* name;
  int BaselineOptions::*member;
};
const WholeNumber kNumbers[] = {
    {"forced_sinks", &BaselineOptions::forced_sinks}, {"page_tokens", &BaselineOptions::page_tokens},
    {"window_tokens", &BaselineOptions::window},      {"pool_kernel", &BaselineOptions::pool_kernel},
    {"streaming_sinks", &BaselineOptions::sinks},     {"pyramid_beta", &BaselineOptions::pyramid_beta}};

const WholeNumber* find(const std::string& name) {
  const auto* found = std::find_if(std::begin(kNumbers), std::end(kNumbers), [&](const auto& n) { return name == n.name; });
  return found == std::end(kNumbers) ? nullptr : found;
}

bool is_file(const std::string& budget) { return budget.ends_with(".json"); }

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

std::span<const char* const> BaselineSettings::names() { return kNames; }

bool BaselineSettings::knows(const std::string& name) {
  return std::any_of(std::begin(kNames), std::end(kNames), [&](const char* known) { return name == known; });
}

void BaselineSettings::set(const std::string& name, const std::string& value) {
  BaselineSettings next = *this;
  if (name == "budget" && is_file(value)) {
    const BudgetTables tables = read_budgets(value);
    next.kv_ = tables.kv_head;
    next.query_ = tables.query_head;
    next.budget_text_ = value;
  } else if (name == "budget") {
    next.amount_ = budget_of(value);
    next.kv_.clear();
    next.query_.clear();
    next.budget_text_ = value;
  } else if (name == "budget_head") {
    next.of_query_heads_ = choice(name, value, kHeads) == 1;
  } else if (name == "budget_by") {
    next.by_ = choice(name, value, kBy);
  } else if (name == "sharing") {
    next.options_.sharing = static_cast<Sharing>(choice(name, value, kSharing));
  } else if (name == "pool") {
    next.options_.pool = static_cast<Pool>(choice(name, value, kPools));
  } else if (name == "ada_rule") {
    next.options_.ada_rule = static_cast<AdaRule>(choice(name, value, kAdaRules));
  } else if (name == "ada_share") {
    next.options_.ada_share = number<float>(name, value, "a number");
  } else {
    next.options_.*(find(name)->member) = number<int>(name, value, "a whole number");
  }
  validate(next.options_);
  *this = std::move(next);
}

std::string BaselineSettings::get(const std::string& name) const {
  if (name == "budget") return budget_text_;
  if (name == "budget_head") return kHeads[of_query_heads_ ? 1 : 0];
  if (name == "budget_by") return kBy[by_];
  if (name == "sharing") return kSharing[static_cast<int>(options_.sharing)];
  if (name == "pool") return kPools[static_cast<int>(options_.pool)];
  if (name == "ada_rule") return kAdaRules[static_cast<int>(options_.ada_rule)];
  if (name == "ada_share") {
    char text[32];
    return {text, std::to_chars(text, text + sizeof text, options_.ada_share).ptr};
  }
  return std::to_string(options_.*(find(name)->member));
}

BaselineOptions BaselineSettings::options(float mass) const {
  BaselineOptions options = options_;
  options.mass = mass;
  return options;
}

Budget BaselineSettings::budget() const {
  Budget budget = amount_;
  budget.of_query_heads = of_query_heads_;
  if (kv_.empty()) return budget;
  budget.unit = Budget::Unit::tokens;
  const auto& table = of_query_heads_ ? query_ : kv_;
  if (by_ == 0) {
    double sum = 0;
    for (const auto& row : table) sum += mean(row);
    budget.amount = sum / static_cast<double>(table.size());
    return budget;
  }
  budget.table = table;
  if (by_ == 1) {
    for (auto& row : budget.table) std::fill(row.begin(), row.end(), mean(row));
  }
  return budget;
}

void BaselineSettings::check() const {
  validate(options_);
  const Budget wanted = budget();
  if (!wanted.table.empty() || wanted.unit == Budget::Unit::share) return;  // the model and the prompt decide
  // One head stands for all: they have the same number.
  head_budgets(options_, wanted, {1, 1, 64, 64}, {0, 1}, std::int64_t{1} << 30);
}

}  // namespace tactic::llama
