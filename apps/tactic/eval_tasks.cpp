// Questions over long contexts: RULER (Tables 4 and 5) and LongBench (Tables 2 and 3), answers decoded by every arm.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "core/error.h"
#include "eval.h"
#include "eval/longbench.h"
#include "eval/metrics.h"
#include "eval/ruler/ruler.h"
#include "files.h"
#include "kl.h"
#include "prompt.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

namespace {

// A question put to the model: tokens, and how its answer is scored.
struct Question {
  std::string id;  // "niah_single_1 c3 q0": unique in the experiment
  std::string task;
  Tokens context;  // template's beginning, instruction, haystack
  Tokens closing;  // question, template's end, forced beginning of the answer
  int answer_tokens = 0;
  std::vector<std::string> references;
  std::function<double(const std::string&)> score;
};

class TaskRun {
 public:
  explicit TaskRun(EvalRun& run) : run_(run), protocol_(run.text("protocol", run.options().protocol)) {}
  void measure(const Question& question);

 private:
  Json config(const Question& question, const Arm& arm, double budget) const;
  Json answer(const Question& question, const Arm& arm, double budget);

  EvalRun& run_;
  std::string protocol_;
};

Json TaskRun::config(const Question& question, const Arm& arm, double budget) const {
  Json config = run_.config_of(arm, budget);
  config["task"] = question.task;
  config["sample"] = question.id;
  config["protocol"] = protocol_;
  config["context"] = question.context.size() + question.closing.size();
  const auto bytes = std::as_bytes(std::span(question.context.data(), question.context.size()));
  const auto more = std::as_bytes(std::span(question.closing.data(), question.closing.size()));
  config["tokens"] = fmt::format("{:016x}", hash_bytes(more, hash_bytes(bytes)));
  return config;
}

// Greedy. A: the question is read with the prompt, densely; B: token by token, by the arm, like the answer.
Json TaskRun::answer(const Question& question, const Arm& arm, double budget) {
  EvalEngine& engine = run_.engine();
  const double prefill = engine.read(question.context);
  if (protocol_ == "A") {
    engine.start(arm, budget, question.closing);
  } else {
    engine.start(arm, budget);
    for (const Token token : question.closing) engine.step(token);
  }
  std::string text;
  int tokens = 0;
  for (; tokens < question.answer_tokens; ++tokens) {
    const auto next = static_cast<Token>(largest(engine.logits()));
    if (engine.model().ends_answer(next)) break;
    text += engine.model().text_of(next);
    if (tokens + 1 < question.answer_tokens) engine.step(next);
  }
  Json result = json_of(engine.attended());
  result["score"] = question.score(text);
  result["answer"] = text;
  result["references"] = question.references;
  result["answer_tokens"] = tokens;
  result["prefill_seconds"] = prefill;
  return result;
}

void TaskRun::measure(const Question& question) {
  std::map<std::string, Json> results;
  for (const Arm& arm : run_.arms()) {
    const double budget = EvalRun::budget_of(arm, results);
    const Json configuration = config(question, arm, budget);
    const Json* kept = run_.journal().find(eval::Journal::key_of(configuration));
    const bool measured = kept == nullptr;
    if (measured) {
      kept = &run_.keep(configuration, answer(question, arm, budget));
    }
    results[arm.label] = *kept;
    run_.done(measured, fmt::format("{}: {}: score {:.2f}, {:.0f} tokens", question.id, arm.label, (*kept)["score"].get<double>(),
                                    (*kept)["kv_tokens"].get<double>()));
  }
}

Tokens joined(Tokens first, const Tokens& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// ---- RULER ----------------------------------------------------------------------------------------------------------------

eval::RulerSources ruler_sources(const EvalRun& run, const std::vector<std::string>& tasks) {
  eval::RulerSources sources;
  for (const std::string& path : run.options().texts) {
    for (std::string& word : eval::split_words(read_document(path))) sources.essay.push_back(std::move(word));
  }
  const std::filesystem::path folder = run.options().data;
  for (const std::string& task : tasks) {
    if (task == "qa_1" && !folder.empty()) sources.qa[task] = eval::read_squad((folder / "dev-v2.0.json").string());
    if (task == "qa_2" && !folder.empty())
      sources.qa[task] = eval::read_hotpot((folder / "hotpot_dev_distractor_v1.json").string());
  }
  return sources;
}

Question ruler_question(const EvalRun& run, const Model& model, const eval::RulerSources& sources, eval::RulerRequest request) {
  const auto prompt_of = [&](const std::string& context, const std::string& question) {
    return make_prompt(model, context, question, 0, 0, Truncate::none);
  };
  const auto overhead = static_cast<int>(prompt_of("x", "y").size()) -
                        static_cast<int>(model.tokenise("x", false, false).size()) -
                        static_cast<int>(model.tokenise("y", false, false).size());
  request.count = [&](const std::string& context, const std::string& question) {
    return overhead +
           static_cast<int>(model.tokenise(context, false, false).size() + model.tokenise(question, false, false).size());
  };
  const eval::RulerSample sample = eval::make_ruler(request, sources);
  Prompt prompt = prompt_of(sample.context, sample.question);
  Question question;
  question.task = request.task;
  question.id = fmt::format("{} {} c{} q{}", request.task, request.length, request.context, request.question);
  question.context = std::move(prompt.kept);
  question.closing = joined(std::move(prompt.closing), model.tokenise(sample.answer_prefix, false, false));
  question.answer_tokens = sample.answer_tokens;
  question.references = sample.references;
  question.score = [sample](const std::string& text) { return eval::ruler_score(sample, text); };
  (void)run;
  return question;
}

std::vector<std::string> wanted_tasks(const EvalRun& run) {
  if (!run.options().tasks.empty()) return run.options().tasks;
  std::vector<std::string> tasks;
  for (const Json& task : run.spec().settings.value("tasks", Json::array())) tasks.push_back(task.get<std::string>());
  return tasks;
}

}  // namespace

void run_ruler(EvalRun& run) {
  const int length = run.number("context", run.options().context);
  const int samples = run.number("samples", run.options().samples);
  const auto seed = run.options().has_seed ? run.options().seed : static_cast<std::uint64_t>(run.number("seed", 0));
  const int most_questions = std::max(1, run.number("questions", 0));
  const std::vector<std::string> tasks = wanted_tasks(run);
  const eval::RulerSources sources = ruler_sources(run, tasks);
  run.open(length + 64);  // a few tokens more: texts are joined at token borders
  run.expect(tasks.size() * static_cast<std::size_t>(samples) * run.arms().size());
  TaskRun task_run(run);
  // Samples of all tasks in turn, so that stopping early leaves as many of each.
  for (int sample = 0; sample < samples; ++sample) {
    for (const std::string& task : tasks) {
      const int questions = std::min(most_questions, eval::ruler_questions(task));
      eval::RulerRequest request;
      request.task = task;
      request.length = length;
      request.seed = seed;
      request.context = sample / questions;
      request.question = sample % questions;
      task_run.measure(ruler_question(run, run.engine().model(), sources, std::move(request)));
    }
  }
}

void run_longbench(EvalRun& run) {
  if (run.options().data.empty())
    throw Error(Status::invalid_argument, "no data set: name the folder of LongBench's files (hotpotqa.jsonl, ...) with --data");
  const int length = run.number("context", run.options().context);
  const int samples = run.number("samples", run.options().samples);
  const std::vector<std::string> tasks = wanted_tasks(run);
  std::map<std::string, std::vector<eval::LongBenchSample>> data;
  std::size_t total = 0;
  for (const std::string& name : tasks) {
    data[name] = eval::read_longbench(
        (std::filesystem::path(run.options().data) / (eval::longbench_task(name).name + std::string(".jsonl"))).string());
    total += std::min(data[name].size(), static_cast<std::size_t>(samples));
  }
  run.open(length);
  run.expect(total * run.arms().size());
  TaskRun task_run(run);
  const Model& model = run.engine().model();
  for (std::size_t i = 0; i < static_cast<std::size_t>(samples); ++i) {
    for (const std::string& name : tasks) {
      if (i >= data[name].size()) continue;
      const eval::LongBenchTask& task = eval::longbench_task(name);
      const eval::LongBenchSample& sample = data[name][i];
      Question question;
      question.task = name;
      question.id = fmt::format("{} {} {}", name, length, sample.id);
      question.answer_tokens = task.answer_tokens;
      question.references = sample.answers;
      question.score = [&](const std::string& text) { return eval::best_f1(text, sample.answers, task.first_line); };
      const std::string asked = task.after + sample.input;
      Tokens opening;
      if (task.chat) {
        Prompt frame = make_prompt(model, "", asked + "\nAnswer:", 0, 0, Truncate::none);
        opening = std::move(frame.kept);
        question.closing = std::move(frame.closing);
      } else {
        opening = model.tokenise("", true, false);
        question.closing = model.tokenise("\n\n" + asked, false, false);
      }
      // Too long: the first and the last half of what fits.
      const auto reserved = static_cast<std::int64_t>(opening.size() + question.closing.size()) + task.answer_tokens;
      Tokens text = model.tokenise(task.before + sample.context, false, false);
      question.context =
          joined(std::move(opening), fit_document(std::move(text), length - reserved, Truncate::middle, {}, length));
      task_run.measure(question);
    }
  }
}

}  // namespace tactic::program
