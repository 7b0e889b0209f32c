#include "eval/report/report.h"

#include "support.h"

namespace tactic::eval {
namespace {

void write_closeness(const Folder& folder) {
  Journal journal(folder.path("fig9.jsonl"), "fig9", "1");
  journal.append_run({{"model", "m.gguf"}, {"processor", "P<1>"}, {"started", "now"}, {"settings", {{"steps", 4}}}});
  for (int window = 0; window < 3; ++window) {
    for (const char* arm : {"full", "paper P=0.9", "tactic P=0.9"}) {
      const Json config = {
          {"model", "m.gguf"}, {"arm", arm},       {"method", std::string(arm).substr(0, std::string(arm).find(' '))},
          {"text", "a.txt"},   {"window", window}, {"context", 4096},
          {"steps", 4}};
      const double kl = arm[0] == 'p' ? 0.02 + 0.001 * window : 0.01;
      journal.append(Journal::key_of(config), config,
                     {{"kl_mean", kl}, {"kl_top50_mean", kl / 2}, {"top1", 0.5}, {"kv_tokens", 100}, {"bytes_share", 0.125}});
    }
  }
}

TEST(Report, HoldsTablesPlotsIntervalsAndMachine) {
  const Folder folder;
  write_closeness(folder);
  const std::string page = make_report(folder.path(""));
  EXPECT_MENTIONS(page, "paper P=0.9");
  EXPECT_MENTIONS(page, "0.021 [0.02, 0.022]");  // windows .020 .021 .022
  EXPECT_MENTIONS(page, "12.5%");
  EXPECT_MENTIONS(page, "<svg");
  EXPECT_MENTIONS(page, "P&lt;1&gt;");
  EXPECT_EQ(page.find("http"), std::string::npos);  // needs no other file
}

TEST(Report, NamesTheBuildUnderItsOwnHead) {
  const Folder folder;
  Journal(folder.path("fig9.jsonl"), "fig9", "1")
      .append_run({{"started", "now"}, {"model", "m.gguf"}, {"program", "1.2"}, {"build", "cafe"}, {"engine", "e 5"}});
  EXPECT_MENTIONS(make_report(folder.path("")), "<td>1.2<td>cafe<td>e 5");
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(Report, AnArmWithoutABudgetOfAHeadAloneStandsInTheTableOfUnionsOnly) {
  const Folder folder;
  Journal journal(folder.path("table1.jsonl"), "table1", "1");
  const Json figures = {{"optimal", 1}, {"cluster_optimal", 2}, {"taken", 3}, {"achieved", 0.5}, {"success", 0.5}};
  for (const char* arm : {"tactic by mass", "tactic by error"}) {
    const Json config = {{"model", "m.gguf"}, {"arm", arm}, {"method", "tactic"}, {"context", 4096}};
    Json result = {{"united", figures}};
    if (std::string(arm) == "tactic by mass") result["alone"] = figures;
    journal.append(Journal::key_of(config), config, result);
  }
  const std::string page = make_report(folder.path(""));
  EXPECT_EQ(count_of(page, "<td>tactic by mass"), 2u);
  EXPECT_EQ(count_of(page, "<td>tactic by error"), 1u);
}

TEST(Report, KlStandsForEachTextByItself) {
  const Folder folder;
  Journal journal(folder.path("fig9.jsonl"), "fig9", "1");
  for (const char* text : {"a.txt", "b.txt"}) {
    const Json config = {{"model", "m.gguf"}, {"arm", "full"}, {"method", "full"},
                         {"text", text},      {"window", 0},   {"context", 4096}};
    const double kl = text[0] == 'a' ? 0.25 : 0.75;
    journal.append(Journal::key_of(config), config,
                   {{"kl_mean", kl}, {"kl_top50_mean", 0.1}, {"top1", 0.5}, {"kv_tokens", 100}, {"bytes_share", 1}});
  }
  const std::string page = make_report(folder.path(""));
  EXPECT_MENTIONS(page, "<th>a<th>b<th>");
  EXPECT_MENTIONS(page, "<td>0.25<td>0.75<td>");
}

TEST(Report, AnEmptyFolderAndAMissingOneAreErrors) {
  const Folder folder;
  EXPECT_MENTIONS(message_of([&] { make_report(folder.path("")); }), "has no results");
  EXPECT_MENTIONS(message_of([&] { make_report(folder.path("none")); }), "cannot be read");
}

TEST(Ticks, AreRoundNumbersInsideTheRange) {
  EXPECT_EQ(ticks(0, 10, 5, false), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(ticks(0.011, 0.3, 5, true), (std::vector<double>{0.02, 0.05, 0.1, 0.2}));
}

TEST(Shown, KeepsSignificantDigitsAndDropsTrailingZeros) {
  EXPECT_EQ(shown(0.012345), "0.0123");
  EXPECT_EQ(shown(1975.4, 4), "1975");
  EXPECT_EQ(shown(12), "12");
  EXPECT_EQ(shown(0.5), "0.5");
  EXPECT_EQ(shown(0), "0");
}

TEST(Svg, SmallTicksAreShownByTheirExponent) {
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .log_x = false, .log_y = true, .series = {}};
  plot.series.push_back({.name = "s", .x = {1, 2}, .y = {1e-6, 0.1}, .low = {}, .high = {}, .labels = {}});
  const std::string svg = svg_of(plot);
  for (const char* label : {">1e-6<", ">1e-5<", ">1e-4<", ">0.001<", ">0.1<"}) EXPECT_MENTIONS(svg, label);
}

TEST(Svg, EscapesTextAndLeavesOutWhatAnAxisCannotShow) {
  Plot plot{.title = "a < b", .x_label = "x", .y_label = "y", .log_x = false, .log_y = true, .series = {}};
  plot.series.push_back({.name = "s & t", .x = {1, 2, 3}, .y = {0.1, 0, 0.2}, .low = {}, .high = {}, .labels = {}});
  const std::string svg = svg_of(plot);
  EXPECT_MENTIONS(svg, "a &lt; b");
  EXPECT_MENTIONS(svg, "s &amp; t");
  std::size_t dots = 0;
  for (std::size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) ++dots;
  EXPECT_EQ(dots, 2u);
  EXPECT_MENTIONS(svg_of({.title = "t", .x_label = "", .y_label = "", .series = {}}), "no measured point");
}

TEST(Svg, ASecondSeriesOfAColourHasRingsAndADashedLine) {
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .series = {}};
  plot.series.push_back({.name = "first", .x = {1}, .y = {1}, .low = {}, .high = {}, .labels = {}, .colour = 0});
  plot.series.push_back({.name = "second", .x = {2}, .y = {2}, .low = {}, .high = {}, .labels = {}, .colour = 0, .hollow = true});
  const std::string svg = svg_of(plot);
  EXPECT_EQ(count_of(svg, "fill=\"#0072b2\""), 2u);  // the first one's dot and mark in the legend
  EXPECT_EQ(count_of(svg, "fill=\"#fff\" stroke=\"#0072b2\""), 2u);
  EXPECT_EQ(count_of(svg, "stroke-dasharray"), 1u);
}

}  // namespace
}  // namespace tactic::eval
