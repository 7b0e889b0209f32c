#include "eval/journal.h"

#include "support.h"

namespace tactic::eval {
namespace {

TEST(Journal, FinishedSamplesAreThereAgain) {
  const Folder folder;
  const Json config = {{"arm", "paper"}, {"window", 3}};
  const std::string key = Journal::key_of(config);
  {
    Journal journal(folder.path("a.jsonl"), "fig9", "1");
    journal.append(key, config, {{"kl", 0.5}});
  }
  const Journal journal(folder.path("a.jsonl"), "fig9", "1");
  ASSERT_NE(journal.find(key), nullptr);
  EXPECT_EQ((*journal.find(key))["kl"], 0.5);
  EXPECT_EQ(journal.find("0000000000000000"), nullptr);
}

TEST(Journal, KeysDependOnValuesAndNotOnTheOrderOfFields) {
  EXPECT_EQ(Journal::key_of({{"a", 1}, {"b", 2}}), Journal::key_of({{"b", 2}, {"a", 1}}));
  EXPECT_NE(Journal::key_of({{"a", 1}, {"b", 2}}), Journal::key_of({{"a", 1}, {"b", 3}}));
  EXPECT_EQ(Journal::key_of({{"a", 1}}).size(), 16u);
}

// A power cut in the middle of a line, at every byte of it.
TEST(Journal, AnUnfinishedLastLineCostsOnlyItsSample) {
  const Folder folder;
  {
    Journal journal(folder.path("a.jsonl"), "fig9", "1");
    journal.append("k1", {{"n", 1}}, {{"v", 1}});
    journal.append("k2", {{"n", 2}}, {{"v", 2}});
  }
  const std::string whole = folder.read("a.jsonl");
  const std::size_t second = whole.rfind('\n', whole.size() - 2) + 1;
  for (std::size_t cut = second; cut < whole.size(); ++cut) {
    folder.write("b.jsonl", whole.substr(0, cut));
    Journal journal(folder.path("b.jsonl"), "fig9", "1");
    EXPECT_NE(journal.find("k1"), nullptr);
    EXPECT_EQ(journal.find("k2"), nullptr);
    journal.append("k2", {{"n", 2}}, {{"v", 2}});
    EXPECT_EQ(folder.read("b.jsonl"), whole) << cut;
  }
}

TEST(Journal, ACutInTheFirstLineStartsAnew) {
  const Folder folder;
  folder.write("a.jsonl", "{\"tactic_ev");
  { const Journal journal(folder.path("a.jsonl"), "fig9", "1"); }
  EXPECT_EQ(read_journal(folder.path("a.jsonl")).experiment, "fig9");
}

TEST(Journal, DamageInTheMiddleIsNamedByLine) {
  const Folder folder;
  { Journal(folder.path("a.jsonl"), "fig9", "1").append("k", {{"n", 1}}, {{"v", 1}}); }
  folder.write("a.jsonl", folder.read("a.jsonl") + "{\"key\": nonsense\n");
  const std::string message = message_of([&] { Journal(folder.path("a.jsonl"), "fig9", "1"); });
  EXPECT_MENTIONS(message, "a.jsonl line 3");
}

TEST(Journal, ResultsOfAnotherVersionExperimentOrFormatAreRefused) {
  const Folder folder;
  { const Journal journal(folder.path("a.jsonl"), "fig9", "1.2.3"); }
  EXPECT_MENTIONS(message_of([&] { Journal(folder.path("a.jsonl"), "fig9", "2.0.0"); }),
                  "written by version 1.2.3, this is 2.0.0");
  EXPECT_MENTIONS(message_of([&] { Journal(folder.path("a.jsonl"), "table1", "1.2.3"); }), "of experiment fig9, not table1");
  folder.write("b.jsonl", "{\"tactic_eval\":99,\"version\":\"1\",\"experiment\":\"fig9\"}\n");
  EXPECT_MENTIONS(message_of([&] { Journal(folder.path("b.jsonl"), "fig9", "1"); }), "format 99");
  folder.write("c.jsonl", "{\"something\":\"else\"}\n");
  EXPECT_MENTIONS(message_of([&] { Journal(folder.path("c.jsonl"), "fig9", "1"); }), "does not begin");
}

TEST(Journal, TwoRunsDoNotWriteTheSameFile) {
  const Folder folder;
  const Journal first(folder.path("a.jsonl"), "fig9", "1");
  EXPECT_MENTIONS(message_of([&] { Journal(folder.path("a.jsonl"), "fig9", "1"); }), "another run");
}

TEST(Journal, AFolderThatIsNotThereIsNamed) {
  EXPECT_MENTIONS(message_of([&] { Journal("/nowhere/a.jsonl", "fig9", "1"); }), "/nowhere/a.jsonl");
}

}  // namespace
}  // namespace tactic::eval
