// What RULER's tasks share: names, lengths, scores.
#include "ruler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "core/error.h"

namespace tactic::eval {
namespace {

constexpr const char* kTasks[] = {"niah_single_1",
                                  "niah_single_2",
                                  "niah_single_3",
                                  "niah_multikey_1",
                                  "niah_multikey_2",
                                  "niah_multikey_3",
                                  "niah_multivalue",
                                  "niah_multiquery",
                                  "fwe",
                                  "cwe",
                                  "qa_1",
                                  "qa_2",
                                  "vt"};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return c < 128 ? static_cast<char>(std::tolower(c)) : static_cast<char>(c); });
  return text;
}

}  // namespace

const char* const kNoise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

std::span<const char* const> ruler_tasks() { return kTasks; }

int ruler_questions(const std::string& task) {
  if (task == "niah_multikey_1") return 4;
  if (task == "niah_multikey_2" || task == "niah_multikey_3") return 64;
  return 1;
}

double ruler_score(const RulerSample& sample, const std::string& text) {
  const std::string said = lower(text);
  double found = 0;
  for (const std::string& reference : sample.references) found += said.find(lower(reference)) != std::string::npos ? 1 : 0;
  if (sample.any_reference) return found > 0 ? 1 : 0;
  return sample.references.empty() ? 0 : found / static_cast<double>(sample.references.size());
}

std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text) {
    if (std::isspace(static_cast<unsigned char>(c)) == 0) {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  return words;
}

std::vector<std::string> ruler_words(std::size_t count, const std::vector<std::string>& essay, Random& random) {
  std::set<std::string> seen;
  std::vector<std::string> words;
  const auto add = [&](const std::string& word) {
    if (seen.insert(word).second) words.push_back(word);
  };
  for (const char* word : ruler_adjectives()) add(word);
  for (const char* word : ruler_nouns()) add(word);
  for (std::size_t i = 0; i < essay.size() && words.size() < count; ++i) {
    const std::string& word = essay[i];
    const bool plain = word.size() >= 4 && word.size() <= 10 &&
                       std::all_of(word.begin(), word.end(), [](char c) { return c >= 'a' && c <= 'z'; });
    if (plain) add(word);
  }
  if (words.size() < count) {
    throw Error(
        Status::invalid_argument,
        fmt::format("this length needs {} different words, there are {}: name a longer text with --text", count, words.size()));
  }
  random.shuffle(words);
  words.resize(count);
  return words;
}

int largest_that_fits(const RulerRequest& request, int least, int most, const std::function<RulerSample(int)>& make) {
  const auto tokens = [&](int size) {
    const RulerSample sample = make(size);
    return request.count(sample.context, sample.question + sample.answer_prefix) + sample.answer_tokens;
  };
  const int shortest = tokens(least);
  if (shortest > request.length) {
    throw Error(Status::invalid_argument, fmt::format("task {} takes at least {} tokens, not {}: pass a larger --context",
                                                      request.task, shortest, request.length));
  }
  int low = least;
  int high = least;
  do {  // gallop: the bisection then tokenises texts of about the length that is wanted
    low = high;
    high = std::min(most, std::max(2 * high, 1));
  } while (high < most && tokens(high) <= request.length);
  if (high == most && tokens(most) <= request.length) return most;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (tokens(middle) <= request.length ? low : high) = middle;
  }
  return low;
}

RulerSample make_ruler(const RulerRequest& request, const RulerSources& sources) {
  const std::string& task = request.task;
  if (std::find(std::begin(kTasks), std::end(kTasks), task) == std::end(kTasks)) {
    throw Error(Status::invalid_argument, fmt::format("there is no ruler task {}: choose of {}", task, fmt::join(kTasks, ", ")));
  }
  if (task.starts_with("niah")) return make_needles(request, sources);
  if (task == "vt") return make_variables(request);
  if (task == "cwe") return make_common_words(request, sources);
  if (task == "fwe") return make_frequent_words(request);
  return make_qa(request, sources);
}

}  // namespace tactic::eval
