#include "eval/metrics.h"

#include "eval/gpu_csv.h"
#include "eval/longbench.h"
#include "support.h"

namespace tactic::eval {
namespace {

TEST(NormalisedAnswer, DropsCasePunctuationArticlesAndSpaces) {
  EXPECT_EQ(normalised_answer("The  Quick, brown\nfox's a an-other!"), "quick brown foxs another");
  EXPECT_EQ(normalised_answer("THE"), "");
}

TEST(TokenF1, HandWorkedCases) {
  EXPECT_DOUBLE_EQ(token_f1("the Eiffel Tower", "Eiffel tower."), 1.0);
  // 2 of 4 words said are among the 2 wanted: precision 1/2, recall 1.
  EXPECT_DOUBLE_EQ(token_f1("in Paris near France", "Paris, France"), 2 * 0.5 / 1.5);
  // A word wanted once counts once: precision 1/3, recall 1/2.
  EXPECT_DOUBLE_EQ(token_f1("no no no", "no way"), 2 * (1.0 / 3) * 0.5 / (1.0 / 3 + 0.5));
  EXPECT_DOUBLE_EQ(token_f1("nothing", "something"), 0);
  EXPECT_DOUBLE_EQ(token_f1("", "something"), 0);
}

TEST(BestF1, TakesTheBestReferenceAndTheFirstLineWhereAsked) {
  const std::vector<std::string> references = {"blue", "dark green"};
  EXPECT_DOUBLE_EQ(best_f1("green", references, false), 2 * 1.0 * 0.5 / 1.5);
  EXPECT_DOUBLE_EQ(best_f1("\n\nblue\nPassage: more text", references, true), 1.0);
  EXPECT_LT(best_f1("blue\nPassage: more text", references, false), 0.6);
  EXPECT_DOUBLE_EQ(best_f1("\n", references, true), 0);
}

TEST(LongBench, ReadsThePublishedFormat) {
  const Folder folder;
  const std::string path = folder.write(
      "hotpotqa.jsonl", R"({"input": "Who?", "context": "Passage 1:\nÄ text", "answers": ["Ada", "Ada L."], "length": 4, )"
                        R"("dataset": "hotpotqa", "language": "en", "all_classes": null, "_id": "x1"})"
                        "\n\n"
                        R"({"input": "Where?", "context": "c", "answers": ["here"]})"
                        "\n");
  const auto samples = read_longbench(path);
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_EQ(samples[0].id, "x1");
  EXPECT_EQ(samples[0].context, "Passage 1:\nÄ text");
  EXPECT_EQ(samples[0].answers, (std::vector<std::string>{"Ada", "Ada L."}));
  EXPECT_EQ(samples[1].input, "Where?");
}

TEST(LongBench, BadFilesAreNamedByFileLineAndField) {
  const Folder folder;
  EXPECT_MENTIONS(message_of([&] { read_longbench(folder.path("none.jsonl")); }), "none.jsonl cannot be read");
  const auto message = [&](const std::string& text) {
    return message_of([&] { read_longbench(folder.write("a.jsonl", text)); });
  };
  const std::string good = R"({"input": "i", "context": "c", "answers": ["a"]})";
  EXPECT_MENTIONS(message(good + "\n{\"input\": \"i\"}\n"), "a.jsonl line 2: field context is missing");
  EXPECT_MENTIONS(message(R"({"input": 3, "context": "c", "answers": ["a"]})"), "line 1: field input is a number");
  EXPECT_MENTIONS(message(R"({"input": "i", "context": "c", "answers": []})"), "field answers");
  EXPECT_MENTIONS(message(R"({"input": "i", "context": "c", "answers": [1]})"), "field answers");
  EXPECT_MENTIONS(message(good + "\n{half"), "line 2: it is not a JSON object");
  EXPECT_MENTIONS(message(""), "is empty");
}

TEST(LongBench, AnUnknownTaskListsTheKnown) {
  EXPECT_MENTIONS(message_of([] { longbench_task("gov_report"); }), "hotpotqa, triviaqa");
}

TEST(GpuCsv, RowsAndBadFiles) {
  const Folder folder;
  const auto rows =
      read_gpu_csv(folder.write("a.csv", "slice,what,variant,context,batch,us,note\nlayers,step,\"a,\"\"b\",32768,1,12.5,x\n"));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["variant"], "a,\"b");
  EXPECT_EQ(rows[0]["us"], 12.5);
  EXPECT_MENTIONS(message_of([&] { read_gpu_csv(folder.write("b.csv", "slice,what\n")); }), "b.csv line 1: column variant");
  EXPECT_MENTIONS(message_of([&] { read_gpu_csv(folder.write("c.csv", "slice,what,variant,context,batch,us\na,b\n")); }),
                  "c.csv line 2: 2 fields");
}

}  // namespace
}  // namespace tactic::eval
