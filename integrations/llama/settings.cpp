// The table of settings: parsing, printing, checking.
#include "settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <variant>

#include "core/error.h"
#include "values.h"

namespace tactic::llama {
namespace {

using Member =
    std::variant<float Options::*, int Options::*, bool Options::*, std::uint64_t Options::*, Metric Options::*, Goal Options::*>;
struct Field {
  const char* name;
  Member member;
};
const Field kFields[] = {
    {"mass", &Options::mass},
    {"cluster_size", &Options::cluster_size},
    {"iterations", &Options::iterations},
    {"outlier_share", &Options::outlier_share},
    {"segment_tokens", &Options::segment_tokens},
    {"metric", &Options::metric},
    {"shrinkage", &Options::shrinkage},
    {"int8_centroids", &Options::int8_centroids},
    {"seed", &Options::seed},
    {"sink_tokens", &Options::sink_tokens},
    {"recent_tokens", &Options::recent_tokens},
    {"recluster_tokens", &Options::recluster_tokens},
    {"min_context", &Options::min_context},
    {"goal", &Options::goal},
    {"spread", &Options::spread},
    {"joint", &Options::joint},
    {"verify", &Options::verify},
    {"tail_factor", &Options::tail_factor},
    {"tail_clusters", &Options::tail_clusters},
    {"promise", &Options::promise},
    {"fit_head", &Options::fit_head},
    {"fit_window", &Options::fit_window},
    {"fit_first", &Options::fit_first},
    {"fit_second", &Options::fit_second},
};
const char* const kModes[] = {"tactic", "paper",     "full",       "stock", "quest",        "streamingllm",
                              "snapkv", "pyramidkv", "ada-snapkv", "h2o",   "oracle-top-k", "oracle-top-p"};
constexpr int kFirstBaseline = 4;
static_assert(std::size(kModes) == kFirstBaseline + kBaselines);
const char* const kPresets[] = {"tactic", "paper"};
const char* const kMetrics[] = {"query", "diagonal", "l2"};
const char* const kGoals[] = {"mass", "error"};

struct Assign {
  Options& options;
  const std::string& name;
  const std::string& value;
  void operator()(float Options::*m) const { options.*m = number<float>(name, value, "a number"); }
  void operator()(int Options::*m) const { options.*m = number<int>(name, value, "a whole number"); }
  void operator()(bool Options::*m) const { options.*m = flag(name, value); }
  void operator()(std::uint64_t Options::*m) const { options.*m = number<std::uint64_t>(name, value, "a whole number"); }
  void operator()(Metric Options::*m) const { options.*m = static_cast<Metric>(choice(name, value, kMetrics)); }
  void operator()(Goal Options::*m) const { options.*m = static_cast<Goal>(choice(name, value, kGoals)); }
};

struct Print {
  const Options& options;
  std::string operator()(float Options::*m) const {
    char text[32];
    const auto [end, error] = std::to_chars(text, text + sizeof text, options.*m);
    return error == std::errc() ? std::string(text, end) : std::string();
  }
  std::string operator()(int Options::*m) const { return std::to_string(options.*m); }
  std::string operator()(bool Options::*m) const { return options.*m ? "1" : "0"; }
  std::string operator()(std::uint64_t Options::*m) const { return std::to_string(options.*m); }
  std::string operator()(Metric Options::*m) const { return kMetrics[static_cast<int>(options.*m)]; }
  std::string operator()(Goal Options::*m) const { return kGoals[static_cast<int>(options.*m)]; }
};

const Field* find(const std::string& name) {
  const auto* field = std::find_if(std::begin(kFields), std::end(kFields), [&](const Field& f) { return name == f.name; });
  return field == std::end(kFields) ? nullptr : field;
}

}  // namespace

void Settings::resolve() {
  Options resolved = paper_ ? paper_options() : Options{};
  for (const auto& [name, value] : chosen_) std::visit(Assign{resolved, name, value}, find(name)->member);
  validate(resolved);
  options_ = resolved;
}

void Settings::set(const std::string& name, const std::string& value) {
  Settings next = *this;
  if (name == "method") {
    const int mode = choice(name, value, kModes);
    next.mode_ = static_cast<Mode>(std::min(mode, kFirstBaseline));
    if (next.mode_ == Mode::baseline) next.baseline_.choose(static_cast<Baseline>(mode - kFirstBaseline));
    if (next.mode_ == Mode::tactic || next.mode_ == Mode::paper) next.paper_ = next.mode_ == Mode::paper;
  } else if (name == "preset") {
    next.paper_ = choice(name, value, kPresets) == 1;
    next.chosen_.clear();
  } else if (name == "log") {
    next.log_ = bounded(name, value, 0, 2);
  } else if (name == "max_rows") {
    next.max_rows_ = bounded(name, value, 1, kMaxRows);
  } else if (name == "huge_pages") {
    next.huge_pages_ = flag(name, value);
  } else if (name == "dense_layers") {
    next.dense_layers_ = bounded(name, value, 0, 4096);
  } else if (name == "watch_columns") {
    next.watch_columns_ = flag(name, value);
  } else if (BaselineSettings::knows(name)) {
    next.baseline_.set(name, value);
  } else if (find(name) != nullptr) {
    next.chosen_[name] = value;
  } else {
    throw Error(Status::invalid_argument, "'" + name + "' is not a setting; docs/llama.md lists them");
  }
  next.resolve();
  if (next.mode_ == Mode::baseline) next.baseline_.check();
  ++next.generation_;
  *this = next;
}

std::optional<std::string> Settings::get(const std::string& name) const {
  if (name == "method") return mode_ == Mode::baseline ? name_of(baseline_.options(1).method) : kModes[static_cast<int>(mode_)];
  if (name == "log") return std::to_string(log_);
  if (name == "max_rows") return std::to_string(max_rows_);
  if (name == "huge_pages") return huge_pages_ ? "1" : "0";
  if (name == "dense_layers") return std::to_string(dense_layers_);
  if (name == "watch_columns") return watch_columns_ ? "1" : "0";
  if (BaselineSettings::knows(name)) return baseline_.get(name);
  const Field* field = find(name);
  if (field == nullptr) return std::nullopt;
  return std::visit(Print{options_}, field->member);
}

Settings Settings::from_environment(std::vector<std::string>& complaints) {
  std::vector<std::string> names = {"log", "method", "max_rows", "huge_pages", "dense_layers", "watch_columns"};
  for (const char* name : BaselineSettings::names()) names.emplace_back(name);
  for (const Field& field : kFields) names.emplace_back(field.name);
  Settings settings;
  // Twice: a limit of one setting may depend on another (recluster_tokens on cluster_size) that comes later in the table.
  for (const bool last : {false, true}) {
    for (const std::string& name : names) {
      std::string variable = "TACTIC_" + name;
      std::transform(variable.begin(), variable.end(), variable.begin(),
                     [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
      const char* value = std::getenv(variable.c_str());
      if (value == nullptr || *value == '\0') continue;
      try {
        settings.set(name, value);
      } catch (const Error& error) {
        if (last) complaints.push_back(variable + "=" + value + ": " + error.what() + "; keeping " + *settings.get(name));
      }
    }
  }
  return settings;
}

}  // namespace tactic::llama
