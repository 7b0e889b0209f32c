// Reads experiments: fields are checked, lists of methods, masses and settings become arms.
#include "spec.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace tactic::eval {
namespace {

[[noreturn]] void fail(const std::string& origin, const std::string& field, const std::string& problem) {
  throw Error(Status::corrupt, fmt::format("experiment {}: field {} {}: see docs/evaluation.md", origin, field, problem));
}

std::string text_of(const Json& json, const char* field, const std::string& origin, bool required) {
  if (!json.contains(field)) {
    if (required) fail(origin, field, "is missing");
    return "";
  }
  if (!json[field].is_string()) fail(origin, field, "must be a text");
  return json[field].get<std::string>();
}

// A value or a list of values.
std::vector<Json> list_of(const Json& json, const char* field) {
  if (!json.contains(field)) return {};
  if (json[field].is_array()) return json[field].get<std::vector<Json>>();
  return {json[field]};
}

std::string plain(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

class Arms {
 public:
  Arms(std::string origin, const SpecChanges& changes) : origin_(std::move(origin)), changes_(changes) {}

  void add(const Json& template_arm);
  std::vector<Arm> finish();

 private:
  void add_variants(const Json& template_arm, Arm arm);
  void keep(Arm arm);

  std::string origin_;
  const SpecChanges& changes_;
  std::vector<Arm> arms_;
};

std::string label_of(const Arm& arm) {
  std::string label = arm.method;
  if (arm.mass > 0) label += fmt::format(" P={}", arm.mass);
  if (!arm.budget_of.empty()) label += fmt::format(" B={}{}", arm.budget_of, arm.count == "q" ? " (query heads)" : "");
  for (const auto& [name, value] : arm.settings) label += fmt::format(" {}={}", name, value);
  return label;
}

void Arms::keep(Arm arm) {
  for (const std::string& setting : changes_.settings) {
    const std::size_t at = setting.find('=');
    arm.settings.emplace_back(setting.substr(0, at), setting.substr(at + 1));
  }
  arm.label = label_of(arm);
  const bool known = std::any_of(arms_.begin(), arms_.end(), [&](const Arm& other) { return other.label == arm.label; });
  if (!known) arms_.push_back(std::move(arm));
}

// "each": settings of which one at a time is added to the arm; "settings": all at once.
void Arms::add_variants(const Json& template_arm, Arm arm) {
  if (template_arm.contains("settings")) {
    for (const auto& [name, value] : template_arm["settings"].items()) arm.settings.emplace_back(name, plain(value));
  }
  if (!template_arm.contains("each")) return keep(std::move(arm));
  for (const auto& [name, values] : template_arm["each"].items()) {
    for (const Json& value : values.is_array() ? values.get<std::vector<Json>>() : std::vector<Json>{values}) {
      Arm variant = arm;
      variant.settings.emplace_back(name, plain(value));
      keep(std::move(variant));
    }
  }
}

void Arms::add(const Json& template_arm) {
  if (!template_arm.is_object()) fail(origin_, "arms", "must hold objects");
  const std::vector<Json> methods = list_of(template_arm, "method");
  if (methods.empty()) fail(origin_, "arms.method", "is missing");
  std::vector<Json> masses = list_of(template_arm, "mass");
  if (!masses.empty() && !changes_.masses.empty()) masses.assign(changes_.masses.begin(), changes_.masses.end());
  if (masses.empty()) masses = {Json(0.0)};
  std::vector<Json> sources = list_of(template_arm, "budget_of");
  const bool budgeted = !sources.empty();
  if (!budgeted) sources = {Json("")};
  for (const Json& mass : masses) {
    for (const Json& source : sources) {
      for (const Json& method : methods) {
        if (!method.is_string() || !source.is_string()) fail(origin_, "arms", "must name methods by texts");
        if (!mass.is_number()) fail(origin_, "arms.mass", "must be numbers");
        Arm arm;
        arm.method = method.get<std::string>();
        const double p = mass.get<double>();
        if (p < 0 || p > 1) fail(origin_, "arms.mass", fmt::format("is {}, must be in (0, 1]", p));
        if (budgeted) {  // the mass is its source's
          Arm reference;
          reference.method = source.get<std::string>();
          reference.mass = p;
          for (const std::string& setting : changes_.settings) {
            const std::size_t at = setting.find('=');
            reference.settings.emplace_back(setting.substr(0, at), setting.substr(at + 1));
          }
          arm.budget_of = label_of(reference);
          arm.count = template_arm.value("count", "kv");
        } else {
          arm.mass = p;
        }
        add_variants(template_arm, std::move(arm));
      }
    }
  }
}

std::vector<Arm> Arms::finish() {
  if (!changes_.methods.empty()) {
    const auto wanted = [&](const Arm& arm) {
      return std::find(changes_.methods.begin(), changes_.methods.end(), arm.method) != changes_.methods.end();
    };
    std::vector<Arm> kept;
    for (const Arm& arm : arms_) {
      const bool is_source =
          std::any_of(arms_.begin(), arms_.end(), [&](const Arm& user) { return wanted(user) && user.budget_of == arm.label; });
      if (wanted(arm) || is_source) kept.push_back(arm);
    }
    arms_ = std::move(kept);
    if (arms_.empty()) fail(origin_, "arms", "has none of the methods asked for");
  }
  for (std::size_t i = 0; i < arms_.size(); ++i) {
    if (arms_[i].budget_of.empty()) continue;
    const bool before = std::any_of(arms_.begin(), arms_.begin() + static_cast<std::ptrdiff_t>(i),
                                    [&](const Arm& other) { return other.label == arms_[i].budget_of; });
    if (!before) fail(origin_, "arms.budget_of", fmt::format("is '{}', which is no arm before it", arms_[i].budget_of));
  }
  return arms_;
}

}  // namespace

Spec parse_spec(const Json& json, const std::string& origin, const SpecChanges& changes) {
  if (!json.is_object()) fail(origin, "(the whole)", "must be an object");
  for (const std::string& setting : changes.settings) {
    if (setting.find('=') == std::string::npos || setting.front() == '=') {
      throw Error(Status::invalid_argument, fmt::format("--set {} must be NAME=VALUE", setting));
    }
  }
  Spec spec;
  spec.name = text_of(json, "name", origin, true);
  spec.journal = json.contains("journal") ? text_of(json, "journal", origin, true) : spec.name;
  spec.kind = text_of(json, "kind", origin, true);
  spec.measure = text_of(json, "measure", origin, false);
  spec.title = text_of(json, "title", origin, true);
  spec.paper = text_of(json, "paper", origin, false);
  spec.about = text_of(json, "about", origin, false);
  spec.settings = json.value("settings", Json::object());
  spec.published = json.value("published", Json::object());
  if (!spec.settings.is_object()) fail(origin, "settings", "must be an object");
  Arms arms(origin, changes);
  for (const Json& arm : list_of(json, "arms")) arms.add(arm);
  spec.arms = arms.finish();
  return spec;
}

}  // namespace tactic::eval
