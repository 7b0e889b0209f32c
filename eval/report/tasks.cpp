// Scores and tokens on RULER and LongBench, in the form of Tables 2 to 5.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "report.h"

namespace tactic::eval {
namespace {

std::vector<std::string> tasks_of(const Group& group) {
  std::vector<std::string> tasks;
  for (const ArmResults& arm : group.arms) {
    for (const Json* sample : arm.samples) {
      const std::string task = (*sample)["config"]["task"].get<std::string>();
      if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) tasks.push_back(task);
    }
  }
  return tasks;
}

std::vector<double> column(const ArmResults& arm, const std::string& task, const char* field) {
  std::vector<double> values;
  for (const Json* sample : arm.samples) {
    if (task.empty() || (*sample)["config"]["task"] == task) values.push_back((*sample)["result"][field].get<double>());
  }
  return values;
}

// Samples that one of two arms solves (score 1) and the other does not.
std::string mcnemar_against(const ArmResults& arm, const ArmResults& full) {
  std::map<std::string, bool> solved;
  for (const Json* sample : full.samples) solved[sample_name(*sample)] = (*sample)["result"]["score"].get<double>() >= 1;
  int only_full = 0;
  int only_arm = 0;
  for (const Json* sample : arm.samples) {
    const auto found = solved.find(sample_name(*sample));
    if (found == solved.end()) continue;
    const bool own = (*sample)["result"]["score"].get<double>() >= 1;
    only_arm += own && !found->second ? 1 : 0;
    only_full += !own && found->second ? 1 : 0;
  }
  return fmt::format("+{} -{}, p = {}", only_arm, only_full, shown(mcnemar(only_arm, only_full), 2));
}

std::string published_table(const Json& spec) {
  if (!spec.contains("published")) return "";
  Table table({"paper: model", "setting", "score"});
  for (const auto& [model, rows] : spec["published"].items()) {
    for (const auto& [name, value] : rows.items()) table.add({model, name, value.dump()});
  }
  return table.empty()
             ? ""
             : "<details><summary>The paper's scores (other models and lengths)</summary>" + table.html() + "</details>";
}

}  // namespace

std::string tasks_section(const JournalContent& journal, const Json& spec) {
  std::string text;
  for (const Group& group : group_samples(journal, true)) {
    const std::vector<std::string> tasks = tasks_of(group);
    text += heading(fmt::format("{}, up to {} tokens, protocol {}", group.model, group.context, group.protocol));
    std::vector<std::string> heads = {"arm, score in %"};
    std::vector<std::string> token_heads = {"arm, tokens"};
    for (const std::string& task : tasks) {
      std::size_t samples = 0;
      for (const ArmResults& arm : group.arms) samples = std::max(samples, column(arm, task, "score").size());
      heads.push_back(fmt::format("{} ({})", task, samples));
      token_heads.push_back(task);
    }
    heads.insert(heads.end(), {"all samples", "solved, against full (McNemar)"});
    Table scores(heads);
    Table tokens(token_heads);
    const auto full = std::find_if(group.arms.begin(), group.arms.end(), [](const ArmResults& arm) { return arm.arm == "full"; });
    for (const ArmResults& arm : group.arms) {
      std::vector<std::string> row = {arm.arm};
      std::vector<std::string> token_row = {arm.arm};
      for (const std::string& task : tasks) {
        const Interval score = bootstrap(column(arm, task, "score"));
        row.push_back(with_interval({100 * score.mean, 100 * score.low, 100 * score.high}));
        token_row.push_back(shown(mean_of(column(arm, task, "kv_tokens")), 4));
      }
      const Interval all = bootstrap(column(arm, "", "score"));
      row.push_back(with_interval({100 * all.mean, 100 * all.low, 100 * all.high}));
      row.push_back(full != group.arms.end() && &*full != &arm ? mcnemar_against(arm, *full) : "");
      scores.add(std::move(row));
      tokens.add(std::move(token_row));
    }
    text += scores.html() + heading("Tokens taken (Tables 3 and 5)") + tokens.html();
  }
  return text + published_table(spec);
}

}  // namespace tactic::eval
