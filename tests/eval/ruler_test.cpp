#include "eval/ruler/ruler.h"

#include <algorithm>
#include <map>
#include <set>

#include "support.h"

namespace tactic::eval {
namespace {

// A tokenizer whose counts are known: a token for every started four characters of a word.
int count_tokens(const std::string& text) {
  int tokens = 0;
  for (const std::string& word : split_words(text)) tokens += static_cast<int>(word.size() + 3) / 4;
  return tokens;
}

RulerRequest request_for(const std::string& task, int length = 3000, int context = 0, int question = 0) {
  return {.task = task,
          .length = length,
          .seed = 7,
          .context = context,
          .question = question,
          .count = [](const std::string& a, const std::string& b) { return count_tokens(a) + count_tokens(b); }};
}

RulerSources sources() {
  RulerSources result;
  for (int i = 0; i < 5000; ++i) {
    std::string word = "w";
    for (int n = i; n > 0; n /= 26) word += static_cast<char>('a' + n % 26);
    result.essay.push_back(word + "essay" + (i % 12 == 11 ? "." : ""));
  }
  QaData qa;
  for (int i = 0; i < 600; ++i) {
    qa.documents.push_back(
        {"This is document number " + std::to_string(i) + " about things that are told in it at some length."});
    qa.items.push_back(
        {"What is number " + std::to_string(i) + "?", {"answer " + std::to_string(i)}, {static_cast<std::size_t>(i)}});
  }
  result.qa["qa_1"] = qa;
  result.qa["qa_2"] = qa;
  return result;
}

int occurrences(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

class EveryTask : public testing::TestWithParam<const char*> {};

TEST_P(EveryTask, FillsTheLengthAndNeverExceedsIt) {
  for (const int length : {3000, 9000}) {
    const RulerSample sample = make_ruler(request_for(GetParam(), length), sources());
    const int tokens = count_tokens(sample.context) + count_tokens(sample.question + sample.answer_prefix) + sample.answer_tokens;
    EXPECT_LE(tokens, length);
    EXPECT_GT(tokens, length - 200);  // the largest step: three uncommon words of a list, a line of noise, a document
  }
}

TEST_P(EveryTask, AsksAllQuestionsOfOneContext) {
  for (const int length : {3000, 3010, 9000}) {  // lengths at which the questions' own lengths decide over a line more or less
    std::set<std::string> contexts, questions;
    for (int question = 0; question < ruler_questions(GetParam()); ++question) {
      const RulerSample sample = make_ruler(request_for(GetParam(), length, 0, question), sources());
      contexts.insert(sample.context);
      questions.insert(sample.question);
      EXPECT_LE(count_tokens(sample.context) + count_tokens(sample.question + sample.answer_prefix) + sample.answer_tokens,
                length);
    }
    EXPECT_EQ(contexts.size(), 1u) << length;
    EXPECT_EQ(questions.size(), static_cast<std::size_t>(ruler_questions(GetParam()))) << length;
  }
}

TEST_P(EveryTask, IsTheSameForASeedAndOtherForAnotherContext) {
  const RulerSources from = sources();
  const RulerSample a = make_ruler(request_for(GetParam()), from);
  const RulerSample b = make_ruler(request_for(GetParam()), from);
  const RulerSample c = make_ruler(request_for(GetParam(), 3000, 1), from);
  EXPECT_EQ(a.context, b.context);
  EXPECT_EQ(a.references, b.references);
  EXPECT_NE(a.context, c.context);
}

TEST_P(EveryTask, ScoresItsOwnReferencesOneAndNothingZero) {
  const RulerSample sample = make_ruler(request_for(GetParam()), sources());
  std::string all;
  for (const std::string& reference : sample.references) all += " " + reference;
  std::transform(all.begin(), all.end(), all.begin(),
                 [](char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); });
  EXPECT_EQ(ruler_score(sample, all), 1);
  EXPECT_EQ(ruler_score(sample, "no idea"), 0);
}

TEST_P(EveryTask, ALengthThatIsTooSmallIsAnError) {
  const std::string message = message_of([] { make_ruler(request_for(GetParam(), 100), sources()); });
  EXPECT_MENTIONS(message, GetParam());
  EXPECT_MENTIONS(message, "at least");
}

std::vector<const char*> all_tasks() { return {ruler_tasks().begin(), ruler_tasks().end()}; }
INSTANTIATE_TEST_SUITE_P(Ruler, EveryTask, testing::ValuesIn(all_tasks()));

struct NeedleCase {
  const char* task;
  int needles;  // lines that name a special magic value for a key that may be asked
  int references;
  bool uuids;
};

class Needles : public testing::TestWithParam<NeedleCase> {};

TEST_P(Needles, StandInTheContextOnceEach) {
  const RulerSample sample = make_ruler(request_for(GetParam().task), sources());
  EXPECT_EQ(static_cast<int>(sample.references.size()), GetParam().references);
  for (const std::string& value : sample.references) {
    EXPECT_EQ(occurrences(sample.context, " is: " + value + "."), 1) << value;
    EXPECT_EQ(value.size(), GetParam().uuids ? 36u : 7u);
    EXPECT_EQ(sample.question.find(value), std::string::npos);
  }
  const int needles = occurrences(sample.context, "One of the special magic ");
  if (GetParam().needles > 0) {
    EXPECT_EQ(needles, GetParam().needles);
  } else {
    EXPECT_GT(needles, 50);  // the haystack is made of them
  }
}

INSTANTIATE_TEST_SUITE_P(Ruler, Needles,
                         testing::Values(NeedleCase{"niah_single_1", 1, 1, false}, NeedleCase{"niah_single_2", 1, 1, false},
                                         NeedleCase{"niah_single_3", 1, 1, true}, NeedleCase{"niah_multikey_1", 4, 1, false},
                                         NeedleCase{"niah_multikey_2", 0, 1, false}, NeedleCase{"niah_multikey_3", 0, 1, true},
                                         NeedleCase{"niah_multivalue", 4, 4, false}, NeedleCase{"niah_multiquery", 4, 4, false}));

TEST(Ruler, QuestionsAboutOneContextShareItAndAskForOthers) {
  const RulerSources from = sources();
  for (const char* task : {"niah_multikey_1", "niah_multikey_2", "niah_multikey_3"}) {
    std::set<std::string> answers;
    const std::string context = make_ruler(request_for(task), from).context;
    for (int question = 0; question < 4; ++question) {
      const RulerSample sample = make_ruler(request_for(task, 3000, 0, question), from);
      EXPECT_EQ(sample.context, context);
      answers.insert(sample.references.front());
    }
    EXPECT_EQ(answers.size(), 4u) << task;
    EXPECT_GE(ruler_questions(task), 4);
  }
}

TEST(Ruler, EssayNeedlesStandBetweenSentencesAtManyDepths) {
  const RulerSources from = sources();
  std::set<int> tenths;
  for (int context = 0; context < 40; ++context) {
    const std::string text = make_ruler(request_for("niah_single_2", 3000, context), from).context;
    const std::size_t at = text.find("One of the special magic");
    ASSERT_NE(at, std::string::npos);
    EXPECT_TRUE(text[at - 2] == '.' || text[at - 1] == '\n') << text.substr(at - 10, 20);
    tenths.insert(static_cast<int>(10 * at / text.size()));
  }
  EXPECT_GE(tenths.size(), 8u);
}

TEST(Ruler, VariablesFormOneChainOfFourHops) {
  const RulerSample sample = make_ruler(request_for("vt"), sources());
  ASSERT_EQ(sample.references.size(), 5u);
  const std::string value = sample.question.substr(sample.question.find("value ") + 6, 5);
  std::string from = value;
  std::size_t last = sample.context.find("VAR " + sample.references[0] + " = " + from);
  for (const std::string& name : sample.references) {
    EXPECT_EQ(name.size(), 5u);
    const std::size_t at = sample.context.find("VAR " + name + " = " + from);
    ASSERT_NE(at, std::string::npos) << name;
    EXPECT_GE(at, last);  // in the order of the chain
    last = at;
    from = "VAR " + name;
  }
  // Five lines, all but the first naming two variables; the worked example has as many.
  EXPECT_EQ(occurrences(sample.context, "VAR "), 2 * 9);
}

TEST(Ruler, CommonWordsAreCommonByTheStatedCounts) {
  for (const auto& [length, often, seldom] : {std::tuple{3000, 6, 1}, std::tuple{9000, 30, 3}}) {
    const RulerSample sample = make_ruler(request_for("cwe", length), sources());
    const std::string list = sample.context.substr(sample.context.rfind('\n') + 1);
    std::map<std::string, int> counts;
    for (const std::string& word : split_words(list)) ++counts[word];
    std::map<int, int> by_count;
    for (const auto& [word, count] : counts) {
      if (word.back() != '.') ++by_count[count];
    }
    EXPECT_EQ(by_count[often], 10);
    EXPECT_GT(by_count[seldom], 20);
    EXPECT_EQ(by_count.size(), 2u);
    for (const std::string& word : sample.references) EXPECT_EQ(counts[word], often) << word;
    EXPECT_EQ(sample.references.size(), 10u);
  }
}

TEST(Ruler, FrequentWordsFollowTheSquareOfTheRank) {
  const RulerSample sample = make_ruler(request_for("fwe", 9000), sources());
  std::map<std::string, int> counts;
  for (const std::string& word : split_words(sample.context.substr(sample.context.rfind('\n') + 1))) ++counts[word];
  ASSERT_EQ(sample.references.size(), 3u);
  const double first = counts["..."];
  for (int rank = 2; rank <= 4; ++rank) {
    const std::string& word = sample.references[static_cast<std::size_t>(rank - 2)];
    EXPECT_EQ(word.size(), 6u);
    EXPECT_NEAR(counts[word], first / (rank * rank), 1.0);
  }
  for (const auto& [word, count] : counts) {
    if (word != "..." && std::find(sample.references.begin(), sample.references.end(), word) == sample.references.end()) {
      EXPECT_LT(count, counts[sample.references[2]]);
    }
  }
}

TEST(Ruler, QaHoldsTheDocumentThatAnswersAndOthersOnce) {
  const RulerSample sample = make_ruler(request_for("qa_1"), sources());
  const std::string number = sample.references.front().substr(7);
  EXPECT_EQ(occurrences(sample.context, "document number " + number + " "), 1);
  EXPECT_GT(occurrences(sample.context, "document number "), 20);
  EXPECT_TRUE(sample.any_reference);
}

TEST(Ruler, MissingSourcesAndUnknownTasksAreErrors) {
  EXPECT_MENTIONS(message_of([] { make_ruler(request_for("niah_single_2"), {}); }), "--text");
  EXPECT_MENTIONS(message_of([] { make_ruler(request_for("qa_1"), {}); }), "dev-v2.0.json");
  EXPECT_MENTIONS(message_of([] { make_ruler(request_for("niah_single_9"), {}); }), "niah_single_1, ");
  EXPECT_MENTIONS(message_of([] { make_ruler(request_for("cwe", 60000), {}); }), "different words");
}

TEST(RulerFiles, SquadKeepsAnswerableQuestions) {
  const Folder folder;
  const QaData data =
      read_squad(folder.write("s.json", R"({"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "The sea.",
    "qas": [{"question": "What?", "id": "1", "answers": [{"text": "sea", "answer_start": 4}], "is_impossible": false},
            {"question": "Why?", "id": "2", "answers": [], "is_impossible": true}]}]}]})"));
  ASSERT_EQ(data.items.size(), 1u);
  EXPECT_EQ(data.items[0].answers.front(), "sea");
  EXPECT_EQ(data.documents[data.items[0].documents[0]].text, "The sea.");
  EXPECT_MENTIONS(message_of([&] { read_squad(folder.write("b.json", R"({"data": [{"paragraphs": [{"qas": []}]}]})")); }),
                  "no field context");
  EXPECT_MENTIONS(message_of([&] { read_squad(folder.write("c.json", "{\"data\": 3}")); }), "field data");
  EXPECT_MENTIONS(message_of([&] { read_squad(folder.path("d.json")); }), "d.json cannot be read");
}

TEST(RulerFiles, HotpotParagraphsAreDocuments) {
  const Folder folder;
  const QaData data = read_hotpot(folder.write("h.json", R"([{"question": "Q?", "answer": "yes", "_id": "5",
    "context": [["Title", ["One. ", "Two."]], ["Other", ["Three."]]]}])"));
  ASSERT_EQ(data.items.size(), 1u);
  EXPECT_EQ(data.documents[0].text, "Title\nOne. Two.");
  EXPECT_EQ(data.items[0].documents.size(), 2u);
  EXPECT_MENTIONS(message_of([&] { read_hotpot(folder.write("b.json", R"([{"question": "Q?"}])")); }),
                  "question 0 has no field answer");
}

}  // namespace
}  // namespace tactic::eval
