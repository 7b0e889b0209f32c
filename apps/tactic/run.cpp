// run: answer a question about a document, and compare.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "compare.h"
#include "core/isa.h"
#include "files.h"
#include "interrupt.h"
#include "progress.h"

namespace tactic::program {
namespace {

struct Answer {
  Tokens tokens;
  std::string text;
  double seconds = 0;  // of the decode steps but the first, which warms up
  bool whole = true;   // false: interrupted

  double tokens_per_second() const {
    return tokens.size() > 1 && seconds > 0 ? static_cast<double>(tokens.size() - 1) / seconds : 0;
  }
};

// Writes text as it comes, keeping back a character that isn't complete.
class Stream {
 public:
  void add(const std::string& piece) {
    pending_ += piece;
    const std::size_t ready = complete_utf8(pending_);
    std::fwrite(pending_.data(), 1, ready, stdout);
    std::fflush(stdout);
    pending_.erase(0, ready);
  }
  void end() const {
    std::fputs("\n", stdout);
    std::fflush(stdout);
  }

 private:
  std::string pending_;
};

// Whether the answer goes where progress does, a terminal or one log for both: it shows the progress itself.
bool shares_its_place() {
  struct stat text {};
  struct stat notes {};
  return isatty(STDOUT_FILENO) == 1 || (fstat(STDOUT_FILENO, &text) == 0 && fstat(STDERR_FILENO, &notes) == 0 &&
                                        text.st_dev == notes.st_dev && text.st_ino == notes.st_ino);
}

Answer answer(Session& session, const RunOptions& options) {
  Answer answer;
  Sampler sampler(options.temperature, options.seed);
  Stream stream;
  const int most = options.session.tokens;
  Progress progress("answer", most, "tokens", shares_its_place());
  if (Plugin* plugin = session.plugin()) plugin->reset_stats();
  for (int step = 0; step < most; ++step) {
    const Token token = sampler.next(session.context());
    if (session.model().ends_answer(token)) break;
    answer.tokens.push_back(token);
    const std::string piece = session.model().text_of(token);
    answer.text += piece;
    stream.add(piece);
    const auto start = Clock::now();
    answer.whole = session.context().decode(std::span(&token, 1));
    if (!answer.whole) break;
    if (step > 0) answer.seconds += seconds_since(start);
    progress.update(step + 1);
  }
  stream.end();
  progress.finish();
  return answer;
}

nlohmann::ordered_json describe(const Session& session, const RunOptions& options) {
  const ReadingReport& reading = session.report();
  nlohmann::ordered_json json;
  json["model"] = options.session.model;
  json["model_description"] = session.model().description();
  json["context_tokens"] = session.prompt().size();
  json["mass"] = options.session.method.mass;
  json["method"] = options.session.method.method;
  json["goal"] = options.session.method.used_goal();
  json["promise"] = options.session.method.promise;
  for (const auto& [name, value] : options.session.method.settings) json[name] = value;
  json["threads"] = session.threads();
  json["isa"] = name_of(active_isa());
  json["engine"] = engine_version();
  json["version"] = TACTIC_VERSION;
  json["load_seconds"] = reading.load_seconds;
  json["prefill_seconds"] = reading.prefill_seconds;
  json["document_prefill_seconds"] = reading.document_prefill_seconds;
  json["prefilled_tokens"] = reading.prefilled_tokens;
  json["cached_tokens"] = reading.cached_tokens;
  json["cluster_seconds"] = reading.cluster_seconds;
  return json;
}

void add_answer(Session& session, const Answer& answer, nlohmann::ordered_json& json) {
  json["answer"] = answer.text;
  json["answer_tokens"] = answer.tokens.size();
  json["answer_tokens_per_second"] = answer.tokens_per_second();
  json["decode_tokens_per_second"] = answer.tokens_per_second();
  json["interrupted"] = !answer.whole;
  if (session.plugin() == nullptr) return;
  const tactic_llama_stats stats = session.plugin()->stats();
  if (stats.rows == 0) return;
  json["attended_share_mean"] = stats.attended_share;
  if (!baseline_named(json["method"].get<std::string>()))
    json["estimated_mass_mean"] = stats.estimated_mass;  // methods with a budget do not estimate
  json["bytes_read_share"] = stats.dense_bytes > 0 ? stats.bytes / stats.dense_bytes : 1.0;
  json["index_bytes"] = stats.index_bytes;
}

void print_summary(const Answer& answer, const nlohmann::ordered_json& json) {
  std::string line = fmt::format("{} tokens at {:.1f} tokens/s over {} tokens of context", answer.tokens.size(),
                                 answer.tokens_per_second(), json["context_tokens"].get<std::size_t>());
  if (json.contains("bytes_read_share")) {
    line += fmt::format(", {:.1f}% of K and V attended, {:.1f}% of the bytes read",
                        100 * json["attended_share_mean"].get<double>(), 100 * json["bytes_read_share"].get<double>());
  }
  fmt::print(stderr, "{}{}\n", answer.whole ? "" : "interrupted: ", line);
}

void write_json(const std::string& path, const nlohmann::ordered_json& json) {
  if (path.empty()) return;
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;  // an answer cut inside a character
  write_text_file(path, json.dump(2, ' ', false, replace) + "\n", "name another file with --json");
}

}  // namespace

int run(const RunOptions& options) {
  if (!options.json.empty()) NewFile probe(options.json, "name another file with --json");  // before minutes of work
  SessionOptions wanted = options.session;
  wanted.plugin = options.compare || wanted.method.method != "stock";
  if (!options.save_budgets.empty() && wanted.method.method == "stock")
    throw Error(Status::invalid_argument, "--save-budgets needs a method of the plug-in: pass --method tactic or paper");
  Session session(wanted);
  nlohmann::ordered_json json = describe(session, options);
  const int prompt = session.context().length();
  const Answer said = answer(session, options);
  add_answer(session, said, json);
  print_summary(said, json);
  if (!options.save_budgets.empty()) session.plugin()->save_budgets(options.save_budgets);
  bool whole = said.whole;
  if (whole && options.compare) {
    session.context().truncate(prompt);
    whole = compare(session, {.tokens = wanted.tokens, .rounds = options.rounds, .method = wanted.method}, json);
    json["interrupted"] = !whole;
  }
  write_json(options.json, json);
  return whole ? 0 : kInterruptedExit;
}

}  // namespace tactic::program
