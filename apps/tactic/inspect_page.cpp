// The inspection as a page of its own: page.html with the figures put into it.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "inspect.h"
#include "page.h"

namespace tactic::program {
namespace {

using nlohmann::ordered_json;

double rounded(double value) { return std::round(value * 1e5) / 1e5; }

const char* name_of(Method method) {
  switch (method) {
    case Method::tactic:
      return "tactic";
    case Method::paper:
      return "paper";
    case Method::full:
      break;
  }
  return "full";
}

// [layers][q_heads] of each figure of the heat map.
ordered_json heat_maps(const Inspection& inspection) {
  ordered_json maps;
  for (int layer = 0; layer < inspection.info.layers; ++layer) {
    ordered_json share, mass, worst, success, budget;
    for (int head = 0; head < inspection.info.shape.q_heads; ++head) {
      const HeadSummary sum = summarise(inspection, layer, head);
      share.push_back(rounded(sum.attended_share));
      mass.push_back(rounded(sum.true_mass));
      worst.push_back(rounded(sum.worst_mass));
      success.push_back(rounded(sum.success));
      budget.push_back(std::round(sum.budget));
    }
    maps["share"].push_back(share);
    maps["mass"].push_back(mass);
    maps["worst"].push_back(worst);
    maps["success"].push_back(success);
    maps["budget"].push_back(budget);
  }
  return maps;
}

// [layers][steps][kv_heads] attended tokens.
ordered_json attended_by_step(const Inspection& inspection) {
  const int group = inspection.info.shape.group();
  ordered_json layers = ordered_json::array();
  for (const HeadStep& row : inspection.rows) {
    if (row.head == 0 && row.step == 0) layers.push_back(ordered_json::array());
    if (row.head == 0) layers.back().push_back(ordered_json::array());
    if (row.head % group == 0) layers.back().back().push_back(row.attended);
  }
  return layers;
}

// Sorted true masses of all rows, thinned to at most 400: the curve of mass reached.
ordered_json mass_curve(const Inspection& inspection) {
  std::vector<double> masses;
  for (const HeadStep& row : inspection.rows) masses.push_back(row.true_mass);
  std::sort(masses.begin(), masses.end());
  ordered_json curve = ordered_json::array();
  constexpr std::size_t kPoints = 400;
  const std::size_t points = std::min(kPoints, masses.size());
  for (std::size_t i = 0; i < points; ++i) {
    const std::size_t at = points == 1 ? 0 : i * (masses.size() - 1) / (points - 1);
    curve.push_back({rounded(masses[at]), rounded(static_cast<double>(at + 1) / static_cast<double>(masses.size()))});
  }
  return curve;
}

ordered_json places(const Inspection& inspection) {
  ordered_json layers = ordered_json::array();
  for (int layer = 0; layer < inspection.info.layers; ++layer) {
    ordered_json line = ordered_json::array();
    for (int place = 0; place < kPlaces; ++place) {
      line.push_back(rounded(inspection.place_share[static_cast<std::size_t>(layer * kPlaces + place)]));
    }
    layers.push_back(line);
  }
  return layers;
}

}  // namespace

std::string page_of(const Inspection& inspection) {
  const HeadSummary all = summarise(inspection, -1, -1);
  ordered_json data;
  data["model"] = inspection.info.model;
  data["method"] = name_of(inspection.options.method);
  data["target"] = rounded(static_cast<double>(inspection.options.mass));
  data["cluster_size"] = inspection.options.cluster_size;
  data["context"] = inspection.info.tokens();
  data["steps"] = inspection.info.steps;
  data["kv_heads"] = inspection.info.shape.kv_heads;
  data["summary"] = {{"share", rounded(all.attended_share)}, {"attended", std::round(all.attended)},
                     {"mass", rounded(all.true_mass)},       {"worst", rounded(all.worst_mass)},
                     {"success", rounded(all.success)},      {"estimated", rounded(all.estimated_mass)}};
  if (!inspection.margin.empty()) {
    const PromiseSummary promise = summarise_promise(inspection, -1);
    data["promise"] = {{"heads", promise.heads}, {"dense", promise.dense}, {"with_margin", promise.with_margin}};
  }
  data["maps"] = heat_maps(inspection);
  data["attended"] = attended_by_step(inspection);
  data["curve"] = mass_curve(inspection);
  data["places"] = places(inspection);
  std::string text = data.dump(-1, ' ', true, ordered_json::error_handler_t::replace);
  // Inside a script element "</" would end it: the model's name is the file's.
  for (std::size_t at = 0; (at = text.find("</", at)) != std::string::npos; at += 3) text.replace(at, 2, "<\\/");
  std::string page = kInspectPage;
  constexpr std::string_view kPlace = "/*DATA*/null";
  page.replace(page.find(kPlace), kPlace.size(), text);
  return page;
}

}  // namespace tactic::program
