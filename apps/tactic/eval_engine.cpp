// The engine under an experiment.
#include "eval_engine.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "cluster/cluster.h"
#include "core/error.h"
#include "files.h"
#include "interrupt.h"
#include "progress.h"
#include "session.h"

namespace tactic::program {
namespace {

// Prompt tokens that every arm reads again: the queries that shape the clusters and the windows of eviction methods.
constexpr std::size_t kShown = QueryMoment::kWindow;

// The presets that a method's other settings start from.
const char* preset_of(const std::string& method) { return method == "paper" ? "paper" : "tactic"; }

std::string build_of(const tactic_llama_control& control) {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(control.set), &info) == 0 || info.dli_fname == nullptr) return "unknown";
  return fmt::format("{:08x}", hash_bytes(MappedFile(info.dli_fname).bytes()) >> 32);
}

}  // namespace

TemporaryFolder::TemporaryFolder() : path_((std::filesystem::temp_directory_path() / "tactic-eval-XXXXXX").string()) {
  if (mkdtemp(path_.data()) == nullptr)
    throw Error(Status::io, fmt::format("folder {} cannot be made: set TMPDIR to a folder that can be written", path_));
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TemporaryFolder::empty() const {
  for (const auto& entry : std::filesystem::directory_iterator(path_)) std::filesystem::remove(entry.path());
}

EvalEngine::EvalEngine(const EngineOptions& options)
    : options_(options), threads_(options.threads > 0 ? options.threads : default_threads()) {
  if (options_.keep_prompts) cache_.emplace(options_.cache.empty() ? Cache::default_folder() : options_.cache);
  start_engine(options_.verbose);
  plugin_.emplace(threads_);
  plugin_->use({.method = "stock"});
  Progress loading("load model", 0, "");
  model_.emplace(options_.model, [](float) {});
  loading.finish(fmt::format("  ({})", model_->description()));
  const int trained = model_->shape().trained_context;
  if (options_.context > trained) {
    throw Error(
        Status::invalid_argument,
        fmt::format("prompt and steps are {} tokens, {} more than the context of {} that {} has: pass a smaller --context",
                    options_.context, options_.context - trained, trained, options_.model));
  }
  identity_ = Cache::key_of(*model_, {});
  build_ = build_of(control());
  context_.emplace(*model_, ContextOptions{.tokens = options_.context, .threads = threads_});
}

void EvalEngine::set(const std::string& name, const std::string& value) const {
  if (control().set(name.c_str(), value.c_str()) != 0)
    throw Error(Status::invalid_argument, fmt::format("{} = {}: {}", name, value, control().last_error()));
}

std::string EvalEngine::method_problem(const eval::Arm& arm) const {
  std::string problem;
  try {
    set("preset", preset_of(arm.method));
    set("method", arm.method);
    for (const auto& [name, value] : arm.settings) set(name, value);
  } catch (const Error& error) {
    problem = error.what();
  }
  set("preset", "tactic");
  set("method", "stock");
  return problem;
}

void EvalEngine::decode(std::span<const Token> tokens, const char* what) {
  Progress progress(what, static_cast<double>(tokens.size()), "tokens", tokens.size() < 1024);
  if (!context_->decode(tokens, [&](std::size_t done) { progress.update(static_cast<double>(done)); })) {
    held_.clear();
    context_->truncate(0);
    throw Interrupted{};
  }
  progress.finish();
}

// What h2o needs of a prompt besides K and V lies beside its state, or without a cache in a file that ends with this process.
std::string EvalEngine::watch_path(std::uint64_t key) const {
  if (cache_) return cache_->watch_path(key);
  return temporary_.path("prompt.watch");
}

// From the cache, if everything that the methods need is there.
bool EvalEngine::restore(std::uint64_t key, const Tokens& prompt, double& seconds) {
  if (!cache_ || (options_.columns && !std::filesystem::exists(watch_path(key)))) return false;
  const auto found = cache_->find(key, prompt);
  if (!found) return false;
  forget_prompt();
  if (!context_->load_state(found->state) || context_->length() != static_cast<int>(prompt.size())) {
    throw Error(Status::corrupt,
                fmt::format("cache folder {} holds a state that the engine refuses: empty it", cache_->folder()));
  }
  seconds = found->prefill_seconds;
  return true;
}

double EvalEngine::read(const Tokens& prompt) {
  set("method", "stock");
  if (prompt == held_) return 0;
  const std::uint64_t key = cache_ ? Cache::key_of(*model_, prompt) : 0;
  double seconds = 0;
  if (restore(key, prompt, seconds)) {
    held_ = prompt;
    held_key_ = key;
    return seconds;
  }
  // Samples of a task often begin alike. Sums over columns are those of one whole prompt.
  std::size_t common = 0;
  while (common < std::min(held_.size(), prompt.size() - 1) && held_[common] == prompt[common]) ++common;
  if (common < kShown || prompt.size() - common <= kShown || options_.columns) common = 0;
  context_->truncate(static_cast<int>(common));
  forget_prompt();
  const auto start = Clock::now();
  set("watch_columns", options_.columns ? "1" : "0");
  decode(std::span(prompt).subspan(common), "read");
  set("watch_columns", "0");
  seconds = seconds_since(start);
  held_ = prompt;
  held_key_ = key;
  if (options_.columns) plugin_->save_watch(watch_path(key));
  if (cache_ && common == 0) cache_->keep(key, prompt, {.state = context_->save_state(), .prefill_seconds = seconds});
  return common == 0 ? seconds : 0;
}

void EvalEngine::start(const eval::Arm& arm, double budget, std::span<const Token> question) {
  set("preset", preset_of(arm.method));
  set("method", arm.method);
  if (arm.mass > 0) set("mass", fmt::format("{}", arm.mass));
  if (budget > 0) set("budget", std::to_string(std::llround(budget)));
  for (const auto& [name, value] : arm.settings) set(name, value);
  control().set_trace(nullptr, nullptr, 0);
  control().drop_index();
  const std::size_t shown = std::min(kShown, held_.size() - 1);
  context_->truncate(static_cast<int>(held_.size() - shown));
  Tokens tail(held_.end() - static_cast<std::ptrdiff_t>(shown), held_.end());
  if (arm.method == "h2o") {  // the sums of the whole prompt; those of the question, if it is read here, are added to them
    decode(tail, "show");
    plugin_->load_watch(watch_path(held_key_));
    tail.clear();
  }
  tail.insert(tail.end(), question.begin(), question.end());
  if (!tail.empty()) decode(tail, "show");
  take_clusters(arm, question);
  mass_ = arm.mass;
  steps_ = 0;
  sums_ = {};
  control().reset_stats();
  control().set_trace(on_row, this, true_mass_ ? unsigned{TACTIC_TRACE_TRUE_MASS} : 0u);
}

// Arms that cluster alike share it: a prompt's tokens, the queries shown and the options are the same.
void EvalEngine::take_clusters(const eval::Arm& arm, std::span<const Token> question) {
  unkept_.clear();
  shared_seconds_ = 0;
  if (arm.method != "tactic" && arm.method != "paper") return;
  if (std::string(control().get("promise")) == "1") return;  // probes depend on the way of choosing, too
  const std::uint64_t asked = hash_bytes(std::as_bytes(question));
  const std::string path = temporary_.path(fmt::format("{:016x}-{:016x}.index", plugin_->cluster_options(), asked));
  const auto found = clustered_.find(path);
  if (found == clustered_.end()) {
    unkept_ = path;
    return;
  }
  plugin_->load_index(path);
  shared_seconds_ = found->second;
}

// After the first step, which clustered. Nothing is kept of a prompt too short to be clustered.
void EvalEngine::keep_clusters() {
  const std::string path = std::exchange(unkept_, "");
  tactic_llama_stats stats = {};
  stats.size = sizeof stats;
  control().read_stats(&stats);
  if (path.empty() || stats.clustered_tokens == 0) return;
  plugin_->save_index(path);
  clustered_[path] = stats.cluster_seconds;
}

void EvalEngine::forget_prompt() {
  held_.clear();
  clustered_.clear();
  temporary_.empty();
}

std::span<const float> EvalEngine::step(Token token) {
  if (interrupted()) throw Interrupted{};
  ++steps_;
  if (!context_->decode(std::span(&token, 1))) {
    held_.clear();
    throw Interrupted{};
  }
  if (!unkept_.empty()) keep_clusters();
  return context_->logits();
}

void EvalEngine::watch(std::function<void(const tactic_llama_trace&)> on_row, bool true_mass) {
  watcher_ = std::move(on_row);
  true_mass_ = true_mass;
}

void EvalEngine::on_row(const tactic_llama_trace* row, void* self) { static_cast<EvalEngine*>(self)->count(*row); }

void EvalEngine::count(const tactic_llama_trace& row) {
  double kv = 0;
  for (int h = 0; h < row.kv_heads; ++h) kv += static_cast<double>(row.attended[h]);
  double q = 0;
  for (int h = 0; h < row.q_heads; ++h) q += static_cast<double>(row.budget[h]);
  sums_.rows += 1;
  sums_.kv_tokens += kv / row.kv_heads - steps_;
  sums_.q_tokens += q / row.q_heads - steps_;
  if (row.true_mass != nullptr) {
    for (int h = 0; h < row.q_heads; ++h) {
      const auto mass = static_cast<double>(row.true_mass[h]);
      sums_.true_mass += mass / row.q_heads;
      sums_.success += mass >= mass_ - 1e-6 ? 1.0 / row.q_heads : 0.0;  // masses come as floats
    }
  }
  if (watcher_) watcher_(row);
}

Attended EvalEngine::attended() const {
  tactic_llama_stats stats = {};
  stats.size = sizeof stats;
  control().read_stats(&stats);
  const double rows = std::max(sums_.rows, 1.0);
  const double steps = std::max(steps_, 1);
  return {.kv_tokens = sums_.kv_tokens / rows,
          .q_tokens = sums_.q_tokens / rows,
          .share = stats.rows > 0 ? stats.attended_share : 1,
          .bytes_share = stats.dense_bytes > 0 ? stats.bytes / stats.dense_bytes : 1,
          .dense_bytes_per_step = stats.dense_bytes / steps,
          .estimated_mass = stats.estimated_mass,
          .true_mass = sums_.true_mass / rows,
          .success = sums_.success / rows,
          .cluster_seconds = stats.cluster_seconds + shared_seconds_,
          .attention_us = stats.total_us / steps};
}

}  // namespace tactic::program
