// The report's frame: files, sections, machine and settings.
#include "report.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "core/error.h"

namespace tactic::eval {
namespace {

constexpr const char* kHead =
    R"(<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tactic: results</title><style>
body{font:15px/1.45 system-ui,sans-serif;max-width:1180px;margin:24px auto;padding:0 16px;color:#1b1b1b;background:#fff}
h1{font-size:1.5em}h2{margin-top:2em;border-bottom:1px solid #ccc;padding-bottom:4px;font-size:1.25em}h3{font-size:1.05em;margin:1.4em 0 .4em}
table{border-collapse:collapse;margin:.6em 0;font:14px/1.4 system-ui,sans-serif;font-variant-numeric:tabular-nums}td,th{padding:3px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid #e4e4e4}
th{border-bottom:1.5px solid #777;font-weight:600}td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}
svg{width:100%;max-width:860px;height:auto;display:block;margin:.6em 0;font:12px system-ui,sans-serif}svg .grid{stroke:#e2e2e2}svg .title{font-weight:600;font-size:13px}
.note{color:#555;max-width:860px}details{margin:.6em 0;color:#444}summary{cursor:pointer}code{background:#f4f4f4;padding:1px 4px}
</style><h1>Tactic: results</h1>)";

using Section = std::string (*)(const JournalContent&, const Json&);

Section section_of(const std::string& kind, const std::string& measure) {
  static const std::map<std::string, Section> kSections = {
      {"closeness", closeness_section}, {"budgets", budgets_section},   {"values", values_section},
      {"sparsity", sparsity_section},   {"grouping", grouping_section}, {"fit", fit_section},
      {"ruler", tasks_section},         {"longbench", tasks_section},   {"speed", speed_section},
  };
  const auto found = kSections.find(kind == "attention" ? measure : kind);
  return found == kSections.end() ? nullptr : found->second;
}

// The built-in specification whose results a journal holds, or what its runs say of themselves.
Json spec_of(const JournalContent& journal) {
  for (const BuiltIn& known : built_in_experiments()) {
    Json json = Json::parse(known.text);
    if (json.value("journal", json.value("name", "")) == journal.experiment) return json;
  }
  for (const Json& run : journal.runs) {
    if (run.contains("spec")) return run["spec"];
  }
  return {{"name", journal.experiment}, {"kind", "closeness"}, {"title", journal.experiment}};
}

std::string machine_of(const JournalContent& journal) {
  Table table({"started", "model", "program", "build", "engine", "instruction set", "threads", "processor", "system"});
  std::set<std::string> seen;
  for (const Json& run : journal.runs) {
    const auto text = [&](const char* field) {
      const Json value = run.value(field, Json(""));
      return value.is_string() ? value.get<std::string>() : value.dump();
    };
    std::vector<std::string> row = {text("started"), text("model"),   text("program"),   text("build"), text("engine"),
                                    text("isa"),     text("threads"), text("processor"), text("system")};
    std::string rest;
    for (std::size_t i = 1; i < row.size(); ++i) rest += row[i] + "|";
    if (seen.insert(rest).second) table.add(std::move(row));
  }
  std::string settings;
  if (!journal.runs.empty()) settings = journal.runs.back().value("settings", Json::object()).dump();
  return fmt::format(
      "<details><summary>Machine, versions, settings ({} runs)</summary>{}<p>Settings of the experiment: "
      "<code>{}</code></p></details>",
      journal.runs.size(), table.html(), escaped(settings));
}

// fig2 before fig10.
bool by_name(const JournalContent& a, const JournalContent& b) {
  const auto parts = [](const std::string& name) {
    const std::size_t digits = name.find_first_of("0123456789");
    const int number = digits == std::string::npos ? 0 : std::atoi(name.c_str() + digits);
    return std::pair(name.substr(0, digits), number);
  };
  return parts(a.experiment) < parts(b.experiment);
}

}  // namespace

std::string Table::html() const {
  if (rows_.empty()) return "";
  std::string text = "<div class=\"wide\"><table><tr>";
  for (const std::string& head : heads_) text += "<th>" + escaped(head);
  for (const auto& row : rows_) {
    text += "<tr>";
    for (const std::string& cell : row) text += "<td>" + escaped(cell);
  }
  return text + "</table></div>";
}

std::string paragraph(const std::string& text) { return "<p class=\"note\">" + escaped(text) + "</p>"; }
std::string heading(const std::string& text) { return "<h3>" + escaped(text) + "</h3>"; }

std::string with_interval(const Interval& interval, int digits) {
  if (interval.low == interval.high) return shown(interval.mean, digits);
  return fmt::format("{} [{}, {}]", shown(interval.mean, digits), shown(interval.low, digits), shown(interval.high, digits));
}

std::vector<Group> group_samples(const JournalContent& journal, bool round_context) {
  std::vector<Group> groups;
  for (const Json& sample : journal.samples) {
    const Json& config = sample["config"];
    const std::string model = config.value("model", "");
    std::int64_t context = config.value("context", std::int64_t{0});
    if (round_context) context = (context + 1023) / 1024 * 1024;
    const std::string protocol = config.value("protocol", "");
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const Group& g) { return g.model == model && g.context == context && g.protocol == protocol; });
    if (group == groups.end()) group = groups.insert(groups.end(), Group{model, context, protocol, {}});
    const std::string arm = config.value("arm", "");
    auto results = std::find_if(group->arms.begin(), group->arms.end(), [&](const ArmResults& a) { return a.arm == arm; });
    if (results == group->arms.end())
      results = group->arms.insert(group->arms.end(), ArmResults{arm, config.value("method", ""), {}});
    results->samples.push_back(&sample);
  }
  return groups;
}

std::string sample_name(const Json& sample) {
  const Json& config = sample["config"];
  if (config.contains("sample")) return config["sample"].get<std::string>();
  return fmt::format("{}/{}/{}", config.value("text", ""), config.value("window", 0), config.value("steps", 0));
}

std::string make_report(const std::string& folder) {
  std::error_code error;
  std::vector<JournalContent> journals;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".jsonl") journals.push_back(read_journal(entry.path().string()));
  }
  if (error)
    throw Error(Status::io,
                fmt::format("folder {} cannot be read ({}): name the one given to --output", folder, error.message()));
  if (journals.empty())
    throw Error(Status::io, fmt::format("folder {} has no results (*.jsonl): run tactic eval with --output {}", folder, folder));
  std::sort(journals.begin(), journals.end(), by_name);
  std::string page = kHead;
  page += paragraph(
      "Intervals in brackets are 95% bootstrap intervals over windows or samples. Tokens and bytes are per KV head and step, "
      "after the union over "
      "its query heads, without generated tokens; bytes include what a method reads to choose. Rest the pointer on a point to "
      "see its figures.");
  for (const JournalContent& journal : journals) {
    const Json spec = spec_of(journal);
    const std::string paper = spec.value("paper", "");
    page += fmt::format("<h2>{}: {}{}</h2>", escaped(journal.experiment), escaped(spec.value("title", "")),
                        paper.empty() ? "" : " (" + escaped(paper) + " of the paper)");
    page += paragraph(spec.value("about", ""));
    const Section section = section_of(spec.value("kind", ""), spec.value("measure", ""));
    if (journal.samples.empty()) {
      page += paragraph("No finished sample yet.");
    } else if (section != nullptr) {
      page += section(journal, spec);
    }
    page += machine_of(journal);
  }
  return page + "</html>\n";
}

}  // namespace tactic::eval
