// Samples of the RULER benchmark's 13 tasks, of any length, from a seed (docs/evaluation.md says what each task is).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "eval/random.h"

namespace tactic::eval {

struct RulerSample {
  std::string context;        // instruction and haystack
  std::string question;       // follows the context
  std::string answer_prefix;  // forced behind the chat header
  std::vector<std::string> references;
  bool any_reference = false;  // one found is enough (QA); else the score is the share of references found
  int answer_tokens = 0;
};

struct QaDocument {
  std::string text;
};
struct QaItem {
  std::string question;
  std::vector<std::string> answers;
  std::vector<std::size_t> documents;  // that hold the answer
};
struct QaData {
  std::vector<QaDocument> documents;
  std::vector<QaItem> items;
};
// SQuAD v2 dev: answerable questions, paragraphs as documents. HotpotQA dev distractor: its ten paragraphs a question.
// Throw Error(corrupt) naming file and field.
QaData read_squad(const std::string& path);
QaData read_hotpot(const std::string& path);

struct RulerSources {
  std::vector<std::string> essay;    // words of the haystack text, in order
  std::map<std::string, QaData> qa;  // "qa_1" (SQuAD), "qa_2" (HotpotQA)
};

struct RulerRequest {
  std::string task;
  int length = 0;  // tokens of prompt and answer
  std::uint64_t seed = 0;
  int context = 0;   // number of the context: another haystack, other needles
  int question = 0;  // number of the question about it; more than one where ruler_questions() says so
  // Tokens of a prompt of these two texts, template included.
  std::function<int(const std::string& context, const std::string& question_and_prefix)> count;
};

// Throws Error(invalid_argument): unknown task, sources missing, or a length that the task's fixed parts exceed.
RulerSample make_ruler(const RulerRequest& request, const RulerSources& sources);

// The 13 names, in the order of the paper's Table 5.
std::span<const char* const> ruler_tasks();
// How many questions one context of the task allows; their answers lie at different places of it.
int ruler_questions(const std::string& task);

// Share of references that occur in the text, upper and lower case alike; with `any`, 1 if one does.
double ruler_score(const RulerSample& sample, const std::string& text);

std::vector<std::string> split_words(const std::string& text);

// ---- shared by the tasks ---------------------------------------------------------------------------------------------

std::span<const char* const> ruler_adjectives();
std::span<const char* const> ruler_nouns();
// `count` different words: our lists, then words of the essay. Throws when there are not so many.
std::vector<std::string> ruler_words(std::size_t count, const std::vector<std::string>& essay, Random& random);

// The largest size in [least, most] whose prompt fits `length`; prompts grow with the size. Throws when `least` does not fit.
int largest_that_fits(const RulerRequest& request, int least, int most, const std::function<RulerSample(int)>& make);

RulerSample make_needles(const RulerRequest& request, const RulerSources& sources);
RulerSample make_variables(const RulerRequest& request);
RulerSample make_common_words(const RulerRequest& request, const RulerSources& sources);
RulerSample make_frequent_words(const RulerRequest& request);
RulerSample make_qa(const RulerRequest& request, const RulerSources& sources);

// The line that fills haystacks of noise.
extern const char* const kNoise;

}  // namespace tactic::eval
