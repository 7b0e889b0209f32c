// KL to full attention against what was read.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "report.h"

namespace tactic::eval {
namespace {

double number(const Json& sample, const char* field) {
  const Json& result = sample["result"];
  return result.contains(field) && result[field].is_number() ? result[field].get<double>() : NAN;
}

std::vector<double> column(const ArmResults& arm, const char* field) {
  std::vector<double> values;
  for (const Json* sample : arm.samples) values.push_back(number(*sample, field));
  return values;
}

// Differences of the windows that both have; a's mean over b's beside it.
std::string against(const ArmResults& a, const ArmResults& b) {
  std::map<std::string, double> of_b;
  for (const Json* sample : b.samples) of_b[sample_name(*sample)] = number(*sample, "kl_mean");
  std::vector<double> x;
  std::vector<double> y;
  std::vector<int> window;
  for (const Json* sample : a.samples) {
    const auto found = of_b.find(sample_name(*sample));
    if (found == of_b.end()) continue;
    x.push_back(number(*sample, "kl_mean"));
    y.push_back(found->second);
    window.push_back(static_cast<int>(window.size()));
  }
  if (x.empty()) return "";
  const Interval difference = paired_bootstrap(x, y, window);
  return with_interval(difference, 2);
}

const ArmResults* find(const Group& group, const std::string& arm) {
  const auto found = std::find_if(group.arms.begin(), group.arms.end(), [&](const ArmResults& a) { return a.arm == arm; });
  return found == group.arms.end() ? nullptr : &*found;
}

// An arm's family in the plot: its method, and which budget it was given.
std::string family(const ArmResults& arm) {
  const Json& config = (*arm.samples.front())["config"];
  const std::size_t budget = arm.arm.find(" B=");
  if (budget != std::string::npos)
    return arm.method + " at " + arm.arm.substr(budget + 3, arm.arm.find(' ', budget + 3) - budget - 3);
  return config.contains("set") && !config["set"].empty() ? arm.method + " variants" : arm.method;
}

// Names of the texts whose windows were measured; none if there is only one.
std::vector<std::string> texts_of(const Group& group) {
  std::set<std::string> names;
  for (const ArmResults& arm : group.arms) {
    for (const Json* sample : arm.samples) names.insert((*sample)["config"].value("text", ""));
  }
  if (names.size() < 2) return {};
  return {names.begin(), names.end()};
}

// Mean over the windows of one text.
std::string shown_of_text(const ArmResults& arm, const std::string& text) {
  std::vector<double> values;
  for (const Json* sample : arm.samples) {
    if ((*sample)["config"].value("text", "") == text) values.push_back(number(*sample, "kl_mean"));
  }
  return values.empty() ? "" : shown(mean_of(values));
}

// One colour a method, in the order of the page; rings where the budget is not that of its first series.
void colour_by_method(Plot& plot) {
  std::vector<std::string> methods;
  for (Series& series : plot.series) {
    const std::string method = series.name.substr(0, series.name.find(' '));
    const auto found = std::find(methods.begin(), methods.end(), method);
    series.colour = static_cast<int>(found - methods.begin());
    series.hollow = found != methods.end();
    if (!series.hollow) methods.push_back(method);
  }
}

// Errors of attention's output where they were measured (Figures 3 and 5).
std::string error_part(const Group& group) {
  Table table({"arm", "tokens", "mean |o - o_full|", "variance", "95th percentile", "largest", "relative mean", "KL"});
  Plot kl{.title = "KL against mean |o - o_full|",
          .x_label = "mean |o - o_full|",
          .y_label = "KL",
          .log_x = true,
          .log_y = true,
          .series = {}};
  Plot scatter{.title = "|o - o_full| of single heads (layer by layer, step by step)",
               .x_label = "number of the head, of those kept",
               .y_label = "|o - o_full|",
               .log_x = false,
               .log_y = true,
               .series = {}};
  for (const ArmResults& arm : group.arms) {
    if (!(*arm.samples.front())["result"].contains("error")) continue;
    const auto mean = [&](const char* field) {
      double sum = 0;
      for (const Json* sample : arm.samples) sum += (*sample)["result"]["error"][field].get<double>();
      return sum / static_cast<double>(arm.samples.size());
    };
    const double divergence = mean_of(column(arm, "kl_mean"));
    table.add({arm.arm, shown(mean_of(column(arm, "kv_tokens")), 4), shown(mean("mean")), shown(mean("variance")),
               shown(mean("p95")), shown(mean("largest")), shown(mean("relative_mean")), shown(divergence)});
    auto series = std::find_if(kl.series.begin(), kl.series.end(), [&](const Series& s) { return s.name == arm.method; });
    if (series == kl.series.end())
      series = kl.series.insert(kl.series.end(), {.name = arm.method, .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}});
    series->x.push_back(mean("mean"));
    series->y.push_back(divergence);
    const auto values = (*arm.samples.front())["result"]["error"]["scatter"].get<std::vector<double>>();
    if (arm.arm.find("0.9") == std::string::npos) continue;
    Series dots{.name = arm.arm.substr(0, 27), .x = {}, .y = values, .low = {}, .high = {}, .labels = {}, .line = false};
    for (std::size_t i = 0; i < values.size(); ++i) dots.x.push_back(static_cast<double>(i));
    scatter.series.push_back(std::move(dots));
  }
  if (table.empty()) return "";
  return svg_of(kl) + svg_of(scatter) + table.html();
}

}  // namespace

std::string closeness_section(const JournalContent& journal, const Json& /*spec*/) {
  std::string text;
  for (const Group& group : group_samples(journal, false)) {
    text += heading(fmt::format("{}, {} tokens", group.model, group.context));
    const std::vector<std::string> texts = texts_of(group);
    const ArmResults* paper = find(group, "paper P=0.9");
    std::vector<std::string> heads = {"arm", "windows", "KL"};
    if (paper != nullptr) heads.emplace_back("KL - KL(paper P=0.9)");
    for (const std::string& name : texts) heads.push_back(name.substr(0, name.rfind('.')));
    for (const char* head : {"top 50", "top-1", "tokens", "bytes"}) heads.emplace_back(head);
    Table table(std::move(heads));
    Plot plot{.title = "KL to the engine's own full attention against bytes read",
              .x_label = "bytes of K, V and metadata, % of dense",
              .y_label = "KL",
              .log_x = true,
              .log_y = true,
              .series = {}};
    for (const ArmResults& arm : group.arms) {
      const Interval kl = bootstrap(column(arm, "kl_mean"));
      const double bytes = 100 * mean_of(column(arm, "bytes_share"));
      std::vector<std::string> row = {arm.arm, std::to_string(arm.samples.size()), with_interval(kl)};
      if (paper != nullptr) row.push_back(paper == &arm ? "" : against(arm, *paper));
      for (const std::string& name : texts) row.push_back(shown_of_text(arm, name));
      row.push_back(shown(mean_of(column(arm, "kl_top50_mean"))));
      row.push_back(shown(100 * mean_of(column(arm, "top1"))) + "%");
      row.push_back(shown(mean_of(column(arm, "kv_tokens")), 4));
      row.push_back(shown(bytes) + "%");
      table.add(std::move(row));
      const std::string name = family(arm);
      auto series = std::find_if(plot.series.begin(), plot.series.end(), [&](const Series& s) { return s.name == name; });
      if (series == plot.series.end()) {
        plot.series.push_back(
            {.name = name, .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}, .line = !name.ends_with("variants")});
        series = plot.series.end() - 1;
      }
      series->x.push_back(bytes);
      series->y.push_back(kl.mean);
      series->low.push_back(kl.low);
      series->high.push_back(kl.high);
      series->labels.push_back(fmt::format("{}: KL {} at {}%", arm.arm, shown(kl.mean), shown(bytes)));
    }
    for (Series& series : plot.series) {  // lines go from few bytes to many
      std::vector<std::size_t> order(series.x.size());
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
      std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return series.x[a] < series.x[b]; });
      Series sorted = series;
      for (std::size_t i = 0; i < order.size(); ++i) {
        sorted.x[i] = series.x[order[i]];
        sorted.y[i] = series.y[order[i]];
        sorted.low[i] = series.low[order[i]];
        sorted.high[i] = series.high[order[i]];
        sorted.labels[i] = series.labels[order[i]];
      }
      series = std::move(sorted);
    }
    colour_by_method(plot);
    text += error_part(group) + svg_of(plot) + table.html();
    if (!texts.empty()) text += paragraph("Columns named after a text: mean KL over its windows.");
    text += paragraph(
        "'full' is lossless attention in another summation order: its KL is the engine's numerical noise, which no method goes "
        "below.");
  }
  return text;
}

}  // namespace tactic::eval
