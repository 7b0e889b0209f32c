// Table 1 and the figures about attention itself.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report.h"

namespace tactic::eval {
namespace {

double at(const Json& sample, const char* part, const char* field) { return sample["result"][part][field].get<double>(); }

std::vector<double> column(const ArmResults& arm, const char* part, const char* field) {
  std::vector<double> values;
  for (const Json* sample : arm.samples) values.push_back(at(*sample, part, field));
  return values;
}

std::string percent(const Interval& interval) {
  return with_interval({100 * interval.mean, 100 * interval.low, 100 * interval.high});
}

std::vector<std::string> budget_row(const ArmResults& arm, const char* part) {
  const double in_clusters = mean_of(column(arm, part, "cluster_optimal"));
  const double taken = mean_of(column(arm, part, "taken"));
  return {arm.arm,
          std::to_string(arm.samples.size()),
          shown(mean_of(column(arm, part, "optimal")), 4),
          shown(in_clusters, 4),
          with_interval(bootstrap(column(arm, part, "taken")), 4),
          shown(taken / in_clusters),
          shown(100 * mean_of(column(arm, part, "achieved"))) + "%",
          percent(bootstrap(column(arm, part, "success"))) + "%"};
}

std::string window_name(const Json& sample) {
  const Json& config = sample["config"];
  return fmt::format("{}, window {}", config.value("text", ""), config.value("window", 0));
}

}  // namespace

std::string budgets_section(const JournalContent& journal, const Json& spec) {
  std::string text;
  const std::vector<std::string> heads = {"arm",      "windows", "optimal", "cluster optimal", "taken", "of cluster optimal",
                                          "achieved", "success"};
  for (const Group& group : group_samples(journal, false)) {
    text += heading(fmt::format("{}, {} tokens: each query head by itself (the paper's table)", group.model, group.context));
    Table alone(heads);
    Table united(heads);
    for (const ArmResults& arm : group.arms) {
      if ((*arm.samples.front())["result"].contains("alone")) alone.add(budget_row(arm, "alone"));
      united.add(budget_row(arm, "united"));
    }
    text += alone.html();
    text += paragraph(
        "Goal mass: rows are spent until P of the head's mass is reached. Arms of tactic without goal=mass spend them for a "
        "small "
        "error of the output (goal error) and have no budget of a head alone: they are in the next table only.");
    text += heading("A KV head's union, as it is attended");
    text += paragraph(
        "optimal and cluster optimal: unions of the query heads' own sets; achieved and success: of each query head on the "
        "union. Success against P is what goal error does not aim at.");
    text += united.html();
  }
  Table published({"paper: model", "P", "optimal", "cluster optimal", "Tactic", "achieved", "success"});
  const Json by_model = spec.contains("published") ? spec["published"] : Json::object();
  for (const auto& [model, rows] : by_model.items()) {
    for (const auto& [mass, row] : rows.items()) {
      published.add({model, mass, shown(row[0].get<double>(), 4), shown(row[1].get<double>(), 4), shown(row[2].get<double>(), 4),
                     shown(100 * row[3].get<double>()) + "%", shown(100 * row[4].get<double>()) + "%"});
    }
  }
  if (!published.empty()) {
    text += heading("Published (PG19, other models: for the form, not to be compared digit by digit)") + published.html();
  }
  return text;
}

std::string values_section(const JournalContent& journal, const Json& /*spec*/) {
  std::string text;
  for (const Group& group : group_samples(journal, false)) {
    text += heading(fmt::format("{}, {} tokens", group.model, group.context));
    Series variation{.name = "deviation / mean", .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}, .line = false};
    Series ratio{.name = "99th / 1st percentile", .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}, .line = false};
    Series first{.name = "first token / mean", .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}, .line = false};
    for (const Json* sample : group.arms.front().samples) {
      for (const Json& head : (*sample)["result"]["heads"]) {
        const double layer = head["layer"].get<double>();
        for (Series* series : {&variation, &ratio, &first}) series->x.push_back(layer);
        variation.y.push_back(head["variation"].get<double>());
        ratio.y.push_back(head["p99"].get<double>() / head["p1"].get<double>());
        first.y.push_back(head["first_token"].get<double>() / head["mean"].get<double>());
      }
    }
    Table table({"of |V|, over layers and KV heads", "median", "largest"});
    for (const Series* series : {&variation, &ratio, &first})
      table.add({series->name, shown(quantile_of(series->y, 0.5)), shown(quantile_of(series->y, 1))});
    text += svg_of({.title = "Norms of V",
                    .x_label = "layer",
                    .y_label = "ratio",
                    .log_x = false,
                    .log_y = true,
                    .series = {variation, ratio, first}});
    text += table.html();
  }
  return text;
}

std::string sparsity_section(const JournalContent& journal, const Json& /*spec*/) {
  std::string text;
  for (const Group& group : group_samples(journal, false)) {
    for (const ArmResults& arm : group.arms) {
      text += heading(fmt::format("{}, {} tokens, {}", group.model, group.context, arm.arm));
      Series median{.name = "median head", .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}};
      Series heads{.name = "each head (mean of steps)", .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}, .line = false};
      Series steps{.name = "one head, step by step", .x = {}, .y = {}, .low = {}, .high = {}, .labels = {}};
      std::vector<double> all;
      const Json& layers = (*arm.samples.front())["result"]["tokens"];
      const std::string first = window_name(*arm.samples.front());
      for (const Json* sample : arm.samples) {
        for (const Json& layer : (*sample)["result"]["tokens"]) {
          for (const Json& head : layer) {
            const auto values = head.get<std::vector<double>>();
            all.insert(all.end(), values.begin(), values.end());
          }
        }
      }
      for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        std::vector<double> means;
        for (std::size_t head = 0; head < layers[layer].size(); ++head) {
          const auto values = layers[layer][head].get<std::vector<double>>();
          means.push_back(mean_of(values));
          heads.x.push_back(static_cast<double>(layer));
          heads.y.push_back(means.back());
        }
        median.x.push_back(static_cast<double>(layer));
        median.y.push_back(quantile_of(means, 0.5));
      }
      const auto one = layers[layers.size() / 2][0].get<std::vector<double>>();
      for (std::size_t step = 0; step < one.size(); ++step) {
        steps.x.push_back(static_cast<double>(step));
        steps.y.push_back(one[step]);
      }
      text += svg_of({.title = "Fewest tokens that hold P, by layer and query head: " + first,
                      .x_label = "layer",
                      .y_label = "tokens",
                      .log_x = false,
                      .log_y = true,
                      .series = {heads, median}});
      text += svg_of({.title = fmt::format("The same over steps: layer {}, query head 0", layers.size() / 2),
                      .x_label = "step",
                      .y_label = "tokens",
                      .log_x = false,
                      .log_y = true,
                      .series = {steps}});
      text += paragraph(fmt::format(
          "Over windows, layers, heads and steps: 5% take at most {}, half {}, 95% {} tokens; the mean is {}.",
          shown(quantile_of(all, 0.05)), shown(quantile_of(all, 0.5)), shown(quantile_of(all, 0.95)), shown(mean_of(all), 4)));
    }
  }
  return text;
}

std::string grouping_section(const JournalContent& journal, const Json& /*spec*/) {
  struct Kind {
    const char *title, *clusters, *pages;
  };
  std::string text;
  for (const Group& group : group_samples(journal, false)) {
    text += heading(fmt::format("{}, {} tokens", group.model, group.context));
    for (const Kind& kind : {Kind{"Variance of keys that lies between groups", "clusters", "pages"},
                             Kind{"Variance of scores q . k that lies between groups", "score_clusters", "score_pages"}}) {
      Plot plot{.title = kind.title, .x_label = "layer", .y_label = "share", .series = {}};
      Table table({kind.title, "median", "least", "largest"});
      for (const ArmResults& arm : group.arms) {
        for (const char* field : {kind.clusters, kind.pages}) {
          Series series{.name = fmt::format("{} of {} ({})", field == kind.clusters ? "clusters" : "pages",
                                            (*arm.samples.front())["result"]["page"].dump(), arm.method),
                        .x = {},
                        .y = {},
                        .low = {},
                        .high = {},
                        .labels = {},
                        .line = false};
          for (const Json* sample : arm.samples) {
            for (const Json& head : (*sample)["result"]["heads"]) {
              if (!head.contains(field)) continue;
              series.x.push_back(head["layer"].get<double>());
              series.y.push_back(head[field].get<double>());
            }
          }
          if (series.y.empty()) continue;
          table.add(
              {series.name, shown(quantile_of(series.y, 0.5)), shown(quantile_of(series.y, 0)), shown(quantile_of(series.y, 1))});
          plot.series.push_back(std::move(series));
        }
      }
      if (!plot.series.empty()) text += svg_of(plot) + table.html();
    }
  }
  return text;
}

std::string fit_section(const JournalContent& journal, const Json& /*spec*/) {
  std::string text;
  for (const Group& group : group_samples(journal, false)) {
    text += heading(fmt::format("{}, {} tokens", group.model, group.context));
    std::vector<double> ratios;
    const Json& curves = (*group.arms.front().samples.front())["result"]["curves"];
    for (const ArmResults& arm : group.arms) {
      for (const Json* sample : arm.samples) {
        for (const Json& curve : (*sample)["result"]["curves"])
          ratios.push_back(curve["fitted_tail_mass"].get<double>() / std::max(curve["tail_mass"].get<double>(), 1e-12));
      }
    }
    for (const std::size_t which : {curves.size() / 6, curves.size() / 2, curves.size() - 2}) {
      const Json& curve = curves[which];
      const auto places = curve["place"].get<std::vector<double>>();
      text += svg_of({.title = fmt::format("Layer {}, query head {}: {}", curve["layer"].dump(), curve["head"].dump(),
                                           window_name(*group.arms.front().samples.front())),
                      .x_label = "place in cluster order",
                      .y_label = "share of the mass, a token",
                      .log_x = true,
                      .log_y = true,
                      .series = {{.name = "exact",
                                  .x = places,
                                  .y = curve["exact"].get<std::vector<double>>(),
                                  .low = {},
                                  .high = {},
                                  .labels = {}},
                                 {.name = "a/x + b",
                                  .x = places,
                                  .y = curve["fitted"].get<std::vector<double>>(),
                                  .low = {},
                                  .high = {},
                                  .labels = {},
                                  .line = true,
                                  .dots = false}}});
    }
    text += paragraph(fmt::format(
        "Fitted mass of the tokens behind the first 2%, over the exact one, for a head of every layer: 5% lie below {}, "
        "half below {}, 95% below {}.",
        shown(quantile_of(ratios, 0.05)), shown(quantile_of(ratios, 0.5)), shown(quantile_of(ratios, 0.95))));
  }
  return text;
}

}  // namespace tactic::eval
