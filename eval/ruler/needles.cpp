// Needles in a haystack: single, multikey, multivalue, multiquery.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/error.h"
#include "ruler.h"

namespace tactic::eval {
namespace {

enum class Haystack { noise, essay, needles };

struct NeedleTask {
  const char* name;
  Haystack haystack;
  bool uuid_keys, uuid_values;
  int keys, values, queries;
};
constexpr NeedleTask kNeedleTasks[] = {
    {"niah_single_1", Haystack::noise, false, false, 1, 1, 1},     {"niah_single_2", Haystack::essay, false, false, 1, 1, 1},
    {"niah_single_3", Haystack::essay, false, true, 1, 1, 1},      {"niah_multikey_1", Haystack::essay, false, false, 4, 1, 1},
    {"niah_multikey_2", Haystack::needles, false, false, 1, 1, 1}, {"niah_multikey_3", Haystack::needles, true, true, 1, 1, 1},
    {"niah_multivalue", Haystack::essay, false, false, 1, 4, 1},   {"niah_multiquery", Haystack::essay, false, false, 4, 1, 4},
};
constexpr int kDepths = 40;  // evenly spaced places of an essay where a needle may stand
constexpr int kAnswerTokens = 128;
constexpr int kMost = 1 << 22;  // words or lines of a haystack

std::string uuid4(Random& random) {
  const std::uint64_t a = random.next();
  const std::uint64_t b = random.next();
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a >> 32, (a >> 16) & 0xffff, a & 0xfff,
                     0x8000u | ((b >> 48) & 0x3fff), b & 0xffffffffffffu);
}

// Keys and values, none of them twice.
class Maker {
 public:
  Maker(const NeedleTask& task, Random random) : task_(task), random_(random) {}

  std::string key() {
    return fresh([&] {
      if (task_.uuid_keys) return uuid4(random_);
      const auto adjectives = ruler_adjectives();
      const auto nouns = ruler_nouns();
      return fmt::format("{}-{}", adjectives[random_.below(adjectives.size())], nouns[random_.below(nouns.size())]);
    });
  }
  std::string value() {
    return fresh([&] { return task_.uuid_values ? uuid4(random_) : std::to_string(1000000 + random_.below(9000000)); });
  }
  Random& random() { return random_; }

 private:
  template <class Make>
  std::string fresh(Make make) {
    for (int tries = 0; tries < 10000; ++tries) {
      std::string made = make();
      if (used_.insert(made).second) return made;
    }
    throw Error(Status::invalid_argument, "this length needs more different keys than there are: pass a smaller --context");
  }
  const NeedleTask& task_;
  Random random_;
  std::set<std::string> used_;
};

struct Needle {
  std::string key;
  std::vector<std::string> values;
};

const char* kind(const NeedleTask& task) { return task.uuid_values ? "uuids" : "numbers"; }

std::string needle_text(const NeedleTask& task, const std::string& key, const std::string& value) {
  return fmt::format("One of the special magic {} for {} is: {}.", kind(task), key, value);
}

// The texts stand at random different lines among `lines` of the filler.
std::string mix_lines(std::vector<std::string> filler, const std::vector<std::string>& needles, Random& random) {
  std::vector<std::size_t> places = random.sample(filler.size() + needles.size(), needles.size());
  std::sort(places.begin(), places.end());
  for (std::size_t i = 0; i < needles.size(); ++i)
    filler.insert(filler.begin() + static_cast<std::ptrdiff_t>(places[i]), needles[i]);
  return fmt::format("{}", fmt::join(filler, "\n"));
}

// Between sentences of the first `words` words, at depths drawn of kDepths.
std::string mix_essay(const std::vector<std::string>& essay, int words, const std::vector<std::string>& needles, Random& random) {
  std::vector<std::string> sentences(1);
  for (int i = 0; i < words; ++i) {
    const std::string& word = essay[static_cast<std::size_t>(i) % essay.size()];
    std::string& sentence = sentences.back();
    sentence += (sentence.empty() ? "" : " ") + word;
    if (word.back() == '.' || word.back() == '!' || word.back() == '?') sentences.emplace_back();
  }
  if (sentences.back().empty()) sentences.pop_back();
  std::vector<std::size_t> depths = random.sample(kDepths, needles.size());
  std::sort(depths.begin(), depths.end());
  std::string text;
  std::size_t next = 0;
  for (std::size_t i = 0; i <= sentences.size(); ++i) {
    while (next < needles.size() && std::llround(static_cast<double>(depths[next]) * static_cast<double>(sentences.size()) /
                                                 (kDepths - 1)) == static_cast<long long>(i)) {
      text += (text.empty() ? "" : " ") + needles[next++];
    }
    if (i < sentences.size()) text += (text.empty() ? "" : " ") + sentences[i];
  }
  return text;
}

std::string listed(const std::vector<std::string>& names) {
  if (names.size() == 1) return names.front();
  return fmt::format("{}, and {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back());
}

// A haystack of `size` and what is hidden in it.
struct Hidden {
  std::vector<Needle> needles;
  std::string haystack;
};

Hidden hide(const NeedleTask& task, const RulerRequest& request, const RulerSources& sources, int size) {
  // Needles do not depend on the size: the search for the length compares like with like.
  Maker maker(task, Random(request.seed * 1000003 + static_cast<std::uint64_t>(request.context)));
  Hidden hidden;
  std::vector<Needle>& needles = hidden.needles;
  needles.resize(static_cast<std::size_t>(task.keys));
  for (Needle& needle : needles) {
    needle.key = maker.key();
    for (int v = 0; v < task.values; ++v) needle.values.push_back(maker.value());
  }
  std::vector<std::string> texts;
  for (const Needle& needle : needles) {
    for (const std::string& value : needle.values) texts.push_back(needle_text(task, needle.key, value));
  }
  maker.random().shuffle(texts);
  if (task.haystack == Haystack::essay) {
    hidden.haystack = mix_essay(sources.essay, size, texts, maker.random());
  } else if (task.haystack == Haystack::noise) {
    hidden.haystack = mix_lines(std::vector<std::string>(static_cast<std::size_t>(size), kNoise), texts, maker.random());
  } else {
    Random places(maker.random().next());
    std::vector<std::string> filler;
    for (int i = 0; i < size; ++i) {
      Needle other;
      other.key = maker.key();
      other.values.push_back(maker.value());
      filler.push_back(needle_text(task, other.key, other.values.front()));
      needles.push_back(std::move(other));
    }
    hidden.haystack = mix_lines(std::move(filler), texts, places);
  }
  return hidden;
}

// The context with one of its questions.
RulerSample ask(const NeedleTask& task, const Hidden& hidden, int question) {
  const std::vector<Needle>& needles = hidden.needles;
  std::vector<std::string> asked;
  RulerSample sample;
  if (task.queries > 1) {
    for (const Needle& needle : needles) asked.push_back(needle.key);
    for (const Needle& needle : needles)
      sample.references.insert(sample.references.end(), needle.values.begin(), needle.values.end());
  } else {
    // Question 0 asks the first key; further ones spread over the others.
    const std::size_t which =
        question == 0 ? 0 : static_cast<std::size_t>(question) * std::max<std::size_t>(1, needles.size() / 64) % needles.size();
    asked.push_back(needles[which].key);
    sample.references = needles[which].values;
  }
  const bool one = task.queries * task.values == 1;
  const std::string what = one ? std::string(kind(task), std::char_traits<char>::length(kind(task)) - 1) : kind(task);
  sample.context =
      one ? fmt::format(
                "A special magic {} is hidden within the following text. Memorize it: you will be asked for the {} "
                "afterwards.\n{}",
                what, what, hidden.haystack)
          : fmt::format(
                "Some special magic {} are hidden within the following text. Memorize them: you will be asked for the "
                "{} afterwards.\n{}",
                what, what, hidden.haystack);
  const std::string who = listed(asked);
  sample.question = one ? fmt::format("What is the special magic {} for {} mentioned in the provided text?", what, who)
                        : fmt::format("What are all the special magic {} for {} mentioned in the provided text?", what, who);
  sample.answer_prefix = one ? fmt::format("The special magic {} for {} mentioned in the provided text is", what, who)
                             : fmt::format("The special magic {} for {} mentioned in the provided text are", what, who);
  sample.answer_tokens = kAnswerTokens;
  return sample;
}

// The longest question that the context allows, so that its length, and so the context, is the same for all: it is read once.
RulerSample ask_longest(const NeedleTask& task, const RulerRequest& request, const Hidden& hidden) {
  int longest = 0, most = -1;
  for (int question = 0; question < ruler_questions(request.task); ++question) {
    const RulerSample sample = ask(task, hidden, question);
    const int tokens = request.count("", sample.question + sample.answer_prefix);
    if (tokens > most) longest = question, most = tokens;
  }
  return ask(task, hidden, longest);
}

}  // namespace

RulerSample make_needles(const RulerRequest& request, const RulerSources& sources) {
  const auto* task =
      std::find_if(std::begin(kNeedleTasks), std::end(kNeedleTasks), [&](const NeedleTask& t) { return request.task == t.name; });
  if (task->haystack == Haystack::essay && sources.essay.empty())
    throw Error(Status::invalid_argument, fmt::format("task {} hides needles in a text: name one with --text", request.task));
  const int size = largest_that_fits(
      request, 1, kMost, [&](int trial) { return ask_longest(*task, request, hide(*task, request, sources, trial)); });
  return ask(*task, hide(*task, request, sources, size), request.question);
}

}  // namespace tactic::eval
