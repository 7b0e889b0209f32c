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

// A row of the GPU benchmark, as tactic eval --csv keeps it.
void keep_row(Journal& journal, const char* what, const char* variant, int batch, int context, double us, double share = 1) {
  const Json row = {{"what", what},    {"variant", variant}, {"q_heads", 32},      {"kv_heads", 8},
                    {"head_dim", 128}, {"batch", batch},     {"context", context}, {"share", share},
                    {"us", us},        {"note", ""},         {"slice", what}};
  const Json config = {{"experiment", "speed"}, {"source", "gpu"}, {"row", row}};
  journal.append(Journal::key_of(config), config, row);
}

TEST(Report, StagesStandBesideTheFastestDenseKernelOfTheirPlace) {
  const Folder folder;
  Journal journal(folder.path("fig10.jsonl"), "fig10", "1");
  keep_row(journal, "tactic step", "tactic P=90%, size 32", 1, 32768, 20, 0.05);
  keep_row(journal, "tactic select", "tactic P=90%, size 32", 1, 32768, 7);
  keep_row(journal, "tactic attend", "tactic P=90%, size 32", 1, 32768, 14);
  keep_row(journal, "cudnn", "", 1, 32768, 38);
  keep_row(journal, "flashinfer", "", 1, 32768, 50);
  keep_row(journal, "tactic dense", "", 1, 32768, 42);
  keep_row(journal, "cudnn", "", 8, 32768, 10);  // another place
  keep_row(journal, "tactic step", "tactic P=90%, size 32", 2, 32768, 15);
  keep_row(journal, "tactic select", "tactic P=90%, size 32", 2, 32768, 7);
  keep_row(journal, "tactic attend", "tactic P=90%, size 32", 2, 32768, 14);
  const std::string page = make_report(folder.path(""));
  EXPECT_MENTIONS(page, "<td>1 x 32K<td>tactic P=90%, size 32<td>5.0%<td>7<td>14<td>-<td>20<td>38<td>1.90x");
  EXPECT_MENTIONS(page, "<title>1 x 32K, tactic: best dense kernel 38</title>");
  EXPECT_MENTIONS(page, "<title>1 x 32K, tactic: attend, merge 14</title>");
  EXPECT_MENTIONS(page, "<title>2 x 32K, tactic: one kernel 15</title>");
}

TEST(Report, AUnionStandsBesideListsOfItsOwnPlaceAndMass) {
  const Folder folder;
  Journal journal(folder.path("fig11.jsonl"), "fig11", "1");
  keep_row(journal, "union attend", "tactic P=70%, union", 8, 32768, 20, 0.01);
  keep_row(journal, "union attend", "tactic P=70%, each query head", 8, 32768, 35, 0.013);
  keep_row(journal, "union attend", "tactic P=90%, each query head", 8, 32768, 40, 0.03);
  const std::string page = make_report(folder.path(""));
  EXPECT_MENTIONS(page, "<td>8 x 32K<td>tactic P=70%<td>1.00%<td>20<td>1.30%<td>35<td>1.75x");
  EXPECT_EQ(count_of(page, "<td>8 x 32K"), 1u);
}

// A decoder's steps at one place, 1 ms of each without attention.
void keep_decoder(Journal& journal, double full_us) {
  keep_row(journal, "decoder tactic", "P=0.9", 1, 1024, 1500);
  keep_row(journal, "decoder full", "P=0.9", 1, 1024, full_us);
  keep_row(journal, "decoder rest", "P=0.9", 1, 1024, 1000);
  keep_row(journal, "decoder cluster", "P=0.9", 1, 1024, 64000);
}

// 1,024 tokens behind 1,024: dense attention of a step is half as long again on average. Full 2 ms, 1 ms of it attention:
// 1.024 s + 1.536 s; Tactic 1.5 ms: 1.536 s and .064 s of clustering. Prefill: 32 layers of 10 ms.
TEST(Report, EndToEndCountsPrefillClusteringAndTheGrowthOfDenseAttention) {
  const Folder folder;
  Journal journal(folder.path("fig12.jsonl"), "fig12", "1");
  keep_decoder(journal, 2000);
  keep_row(journal, "prefill layer", "cudnn", 1, 1024, 10000);
  const std::string page = make_report(folder.path(""));
  EXPECT_MENTIONS(page, "<td>1 x 1K<td>1024<td>2<td>1<td>1.5<td>1.33x<td>0.32<td>0.064<td>1.60x<td>1.50x<td>2.14x");
}

TEST(Report, ADensePeerThatIsFasterThanOursIsTheFullStep) {
  const Folder folder;
  Journal journal(folder.path("fig12.jsonl"), "fig12", "1");
  keep_decoder(journal, 3000);
  keep_row(journal, "cudnn", "", 1, 1024, 31.25);  // 32 layers: 1 ms
  EXPECT_MENTIONS(make_report(folder.path("")), "<td>1 x 1K<td>1024<td>2<td>1<td>1.5<td>1.33x<td>-<td>0.064<td>1.60x<td>-<td>-");
}

TEST(Report, ClusteringStandsAsAShareOfTheSamePromptsPrefill) {
  const Folder folder;
  Journal journal(folder.path("table6.jsonl"), "table6", "1");
  keep_row(journal, "clustering", "tactic, size 32", 2, 32768, 1000);
  keep_row(journal, "prefill layer", "cudnn", 1, 32768, 20000);
  keep_row(journal, "prefill layer", "cudnn", 1, 65536, 10000);
  EXPECT_MENTIONS(make_report(folder.path("")), "<td>2 x 32K<td>tactic, size 32<td>1<td>20<td>2.50%");
}

TEST(Report, ACpusStagesAreATableAndBars) {
  const Folder folder;
  Journal journal(folder.path("fig10.jsonl"), "fig10", "1");
  const Json config = {{"arm", "tactic P=0.9"}, {"context", 8192}};
  journal.append(Journal::key_of(config), config,
                 {{"arm", "tactic P=0.9"},
                  {"rank_microseconds", 10},
                  {"estimate_microseconds", 20},
                  {"union_microseconds", 5},
                  {"attend_microseconds", 65},
                  {"tactic_microseconds", 100},
                  {"dense_microseconds", 450},
                  {"attended_share", 0.05},
                  {"share_of_limit", 0.5}});
  const std::string page = make_report(folder.path(""));
  EXPECT_MENTIONS(page, "<td>8192<td>tactic P=0.9<td>5.0%<td>10<td>20<td>5<td>65<td>100<td>450<td>4.50x<td>50%");
  EXPECT_MENTIONS(page, "<title>8192, tactic P=0.9: attend 65</title>");
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
