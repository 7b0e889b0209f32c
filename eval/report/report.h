// The report: results of a folder as one page that needs no other file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "eval/journal.h"
#include "eval/spec.h"
#include "eval/statistics.h"
#include "plot.h"

namespace tactic::eval {

// Throws Error(io) when the folder has no results, Error(corrupt) naming a damaged file.
std::string make_report(const std::string& folder);

// ---- shared by the sections ------------------------------------------------------------------------------------------

// Samples of one model at one context length, by arm, in the order of their first appearance.
struct ArmResults {
  std::string arm;
  std::string method;
  std::vector<const Json*> samples;  // {"config", "result"}
};
struct Group {
  std::string model;
  std::int64_t context = 0;
  std::string protocol;
  std::vector<ArmResults> arms;
};
// Prompts of ruler and longbench differ by a few tokens: lengths are rounded up to the next 1024.
std::vector<Group> group_samples(const JournalContent& journal, bool round_context);

// "text/window": what two arms' samples must agree in to be paired.
std::string sample_name(const Json& sample);

class Table {
 public:
  explicit Table(std::vector<std::string> heads) : heads_(std::move(heads)) {}
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  bool empty() const { return rows_.empty(); }
  std::string html() const;

 private:
  std::vector<std::string> heads_;
  std::vector<std::vector<std::string>> rows_;
};

std::string paragraph(const std::string& text);
std::string heading(const std::string& text);
std::string with_interval(const Interval& interval, int digits = 3);

// The sections' bodies: tables and plots.
std::string closeness_section(const JournalContent& journal, const Json& spec);
std::string budgets_section(const JournalContent& journal, const Json& spec);
std::string values_section(const JournalContent& journal, const Json& spec);
std::string sparsity_section(const JournalContent& journal, const Json& spec);
std::string grouping_section(const JournalContent& journal, const Json& spec);
std::string fit_section(const JournalContent& journal, const Json& spec);
std::string tasks_section(const JournalContent& journal, const Json& spec);
std::string speed_section(const JournalContent& journal, const Json& spec);

}  // namespace tactic::eval
