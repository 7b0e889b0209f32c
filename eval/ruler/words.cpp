// Variable tracking, common words, frequent words.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ruler.h"

namespace tactic::eval {
namespace {

constexpr int kMost = 1 << 22;

Random random_of(const RulerRequest& request) {
  return Random(request.seed * 1000003 + static_cast<std::uint64_t>(request.context) + 17);
}

// ---- variable tracking: one chain of four hops --------------------------------------------------------------------------

constexpr int kChain = 5;  // variables

struct Chain {
  std::vector<std::string> names;
  std::string value;
  std::string text;  // noise with the assignments among its lines
};

Chain make_chain(int lines, Random& random) {
  Chain chain;
  while (static_cast<int>(chain.names.size()) < kChain) {
    std::string name;
    for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + random.below(26));
    if (std::find(chain.names.begin(), chain.names.end(), name) == chain.names.end()) chain.names.push_back(name);
  }
  chain.value = std::to_string(10000 + random.below(90000));
  std::vector<std::string> text(static_cast<std::size_t>(lines), kNoise);
  std::vector<std::size_t> places = random.sample(text.size() + kChain, kChain);
  std::sort(places.begin(), places.end());
  for (std::size_t i = 0; i < kChain; ++i) {
    const std::string from = i == 0 ? chain.value : "VAR " + chain.names[i - 1];
    text.insert(text.begin() + static_cast<std::ptrdiff_t>(places[i]), fmt::format("VAR {} = {}", chain.names[i], from));
  }
  chain.text = fmt::format("{}", fmt::join(text, "\n"));
  return chain;
}

constexpr const char* kChainTask = "Memorize and track the chain of variable assignments hidden in the following text.";

std::string chain_question(const Chain& chain) {
  return fmt::format("Question: Find all variables that are assigned the value {} in the text above.", chain.value);
}

std::string chain_prefix(const Chain& chain) {
  return fmt::format(
      "Answer: According to the chain of variable assignments in the text above, {} variables are assigned the value {}, "
      "they are:",
      kChain, chain.value);
}

// ---- common words ---------------------------------------------------------------------------------------------------------

constexpr int kCommon = 10;
constexpr int kShortLength = 4096;  // below, words are repeated less often

struct WordList {
  std::vector<std::string> common;
  std::string text;
};

// `others` uncommon words beside the common ones; a numbered list in random order.
WordList make_list(const std::vector<std::string>& words, int others, int often, int seldom, Random& random) {
  WordList list;
  std::vector<std::string> all;
  for (int i = 0; i < kCommon + others; ++i) {
    const std::string& word = words[static_cast<std::size_t>(i)];
    if (i < kCommon) list.common.push_back(word);
    all.insert(all.end(), static_cast<std::size_t>(i < kCommon ? often : seldom), word);
  }
  random.shuffle(all);
  for (std::size_t i = 0; i < all.size(); ++i) list.text += fmt::format("{}{}. {}", i == 0 ? "" : " ", i + 1, all[i]);
  return list;
}

constexpr const char* kListTask =
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most "
    "often.";
constexpr const char* kListQuestion = "Question: What are the 10 most common words in the above list?";
constexpr const char* kListPrefix = "Answer: The top 10 words that appear most often in the list are:";

std::string numbered(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) text += fmt::format(" {}. {}", i + 1, words[i]);
  return text;
}

}  // namespace

RulerSample make_variables(const RulerRequest& request) {
  const auto make = [&](int lines) {
    Random random = random_of(request);
    const Chain example = make_chain(5, random);
    const Chain chain = make_chain(lines, random);
    RulerSample sample;
    sample.context = fmt::format("{}\n{}\n{}\n{} {}\n\n{}\n{}", kChainTask, example.text, chain_question(example),
                                 chain_prefix(example), fmt::join(example.names, " "), kChainTask, chain.text);
    sample.question = chain_question(chain);
    sample.answer_prefix = chain_prefix(chain);
    sample.references = chain.names;
    sample.answer_tokens = 30;
    return sample;
  };
  return make(largest_that_fits(request, 1, kMost, make));
}

RulerSample make_common_words(const RulerRequest& request, const RulerSources& sources) {
  const bool is_short = request.length < kShortLength;
  const int often = is_short ? 6 : 30;
  const int seldom = is_short ? 1 : 3;
  const auto make = [&](int others) {
    Random random = random_of(request);
    constexpr int kExampleWords = 40;
    std::vector<std::string> example_words = ruler_words(kExampleWords, sources.essay, random);
    const WordList example = make_list(example_words, kExampleWords - kCommon, is_short ? 3 : 10, is_short ? 1 : 3, random);
    const std::vector<std::string> words = ruler_words(static_cast<std::size_t>(kCommon + others), sources.essay, random);
    const WordList list = make_list(words, others, often, seldom, random);
    RulerSample sample;
    sample.context = fmt::format("{}\n{}\n{} {}{}\n\n{}\n{}", kListTask, example.text, kListQuestion, kListPrefix,
                                 numbered(example.common), kListTask, list.text);
    sample.question = kListQuestion;
    sample.answer_prefix = kListPrefix;
    sample.references = list.common;
    sample.answer_tokens = 120;
    return sample;
  };
  return make(largest_that_fits(request, 1, kMost, make));
}

RulerSample make_frequent_words(const RulerRequest& request) {
  constexpr double kAlpha = 2.0;
  const auto make = [&](int count) {
    Random random = random_of(request);
    // About length / 50 different words, as many as have a count of one.
    const int kinds = std::max(8, request.length / 50);
    double zeta = 0;
    for (int k = 1; k <= kinds; ++k) zeta += std::pow(k, -kAlpha);
    std::vector<std::string> coded;
    for (int k = 0; k < kinds; ++k) {
      std::string word;
      for (int i = 0; i < 6; ++i) word += static_cast<char>('a' + random.below(26));
      coded.push_back(k == 0 ? "..." : word);
    }
    std::vector<std::string> all;
    for (int k = 0; k < kinds; ++k) {
      const auto times = static_cast<std::size_t>(std::llround(count * std::pow(k + 1, -kAlpha) / zeta));
      all.insert(all.end(), times, coded[static_cast<std::size_t>(k)]);
    }
    random.shuffle(all);
    RulerSample sample;
    sample.context = fmt::format(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded "
        "words.\n{}",
        fmt::join(all, " "));
    sample.question =
        "Question: Ignore the dots '...'. What are the three most frequently appeared words in the above coded text?";
    sample.answer_prefix = "Answer: According to the coded text above, the three most frequently appeared words are:";
    sample.references.assign(coded.begin() + 1, coded.begin() + 4);
    sample.answer_tokens = 50;
    return sample;
  };
  return make(largest_that_fits(request, 16, kMost, make));
}

}  // namespace tactic::eval
