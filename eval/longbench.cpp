// LongBench's question answering tasks.
#include "longbench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace tactic::eval {
namespace {

constexpr const char* kPassages =
    "Answer the question based on the given passages. Only give the answer, without any other words.\n\nThe following are the "
    "given "
    "passages.\n";
constexpr const char* kPassagesAfter =
    "Answer the question based on the given passages. Only give the answer, without any other words.\n\nQuestion: ";

constexpr LongBenchTask kTasks[] = {
    {"hotpotqa", "HotpotQA", kPassages, kPassagesAfter, 32, true, false},
    {"triviaqa", "TriviaQA",
     "Answer the question based on the given passage. Only give the answer, without any other words. The following are some "
     "examples.\n\n",
     "", 32, false, true},
    {"multifieldqa_en", "MultiFieldQA", "Read the following text and answer briefly.\n\n",
     "Now answer the following question based on the above text. Only give the answer, without any other words.\n\nQuestion: ",
     64, true, false},
    {"qasper", "Qasper",
     "You are given a scientific article and a question. Answer the question as concisely as you can, using a single phrase or "
     "sentence if "
     "possible. If the article does not answer the question, write \"unanswerable\". If it is a yes or no question, answer "
     "\"yes\", \"no\" "
     "or \"unanswerable\". Do not explain.\n\nArticle: ",
     "Answer the question based on the above article as concisely as you can. Do not explain.\n\nQuestion: ", 128, true, false},
    {"narrativeqa", "NarrativeQA",
     "You are given a story, which can be either a novel or a movie script, and a question. Answer the question as concisely as "
     "you can, "
     "using a single phrase if possible. Do not explain.\n\nStory: ",
     "Now answer the question based on the story as concisely as you can, using a single phrase if possible. Do not "
     "explain.\n\nQuestion: ",
     128, true, false},
    {"musique", "Musique", kPassages, kPassagesAfter, 32, true, false},
};

}  // namespace

std::span<const LongBenchTask> longbench_tasks() { return kTasks; }

const LongBenchTask& longbench_task(const std::string& name) {
  const auto* found = std::find_if(std::begin(kTasks), std::end(kTasks), [&](const LongBenchTask& t) { return name == t.name; });
  if (found != std::end(kTasks)) return *found;
  std::string known;
  for (const LongBenchTask& task : kTasks) known += std::string(known.empty() ? "" : ", ") + task.name;
  throw Error(Status::invalid_argument, fmt::format("there is no LongBench task {} here: choose of {}", name, known));
}

std::vector<LongBenchSample> read_longbench(const std::string& path) {
  std::ifstream in(path);
  if (!in) {
    throw Error(Status::io,
                fmt::format("data set {} cannot be read ({}): put LongBench's file there, or name its folder with --data", path,
                            std::strerror(errno)));
  }
  std::vector<LongBenchSample> samples;
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty()) continue;
    const auto fail = [&](const std::string& what) -> Error {
      return {Status::corrupt, fmt::format("data set {} line {}: {}: fetch the file again", path, number, what)};
    };
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) throw fail("it is not a JSON object");
    const auto text = [&](const char* field) {
      if (!json.contains(field)) throw fail(fmt::format("field {} is missing", field));
      if (!json[field].is_string()) throw fail(fmt::format("field {} is a {}, not a text", field, json[field].type_name()));
      return json[field].get<std::string>();
    };
    LongBenchSample sample{.id = json.contains("_id") ? text("_id") : std::to_string(number),
                           .context = text("context"),
                           .input = text("input"),
                           .answers = {}};
    if (!json.contains("answers")) throw fail("field answers is missing");
    if (!json["answers"].is_array() || json["answers"].empty()) throw fail("field answers is not a list of texts");
    for (const auto& answer : json["answers"]) {
      if (!answer.is_string()) throw fail("field answers is not a list of texts");
      sample.answers.push_back(answer.get<std::string>());
    }
    samples.push_back(std::move(sample));
  }
  if (samples.empty()) throw Error(Status::corrupt, fmt::format("data set {} is empty: fetch it again", path));
  return samples;
}

}  // namespace tactic::eval
