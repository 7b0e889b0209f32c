// The engine under an experiment: prompts read once and kept, arms started from the same state, what was attended counted.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "cache.h"
#include "engine.h"
#include "eval/spec.h"
#include "plugin.h"

namespace tactic::program {

struct EngineOptions {
  std::string model;
  int context = 0;  // most tokens of prompt and steps
  int threads = 0;
  std::string cache;  // folder of read prompts; empty: the default one
  bool keep_prompts = true;
  bool columns = false;  // h2o is among the methods: prompts are read with the sums that it needs
  bool verbose = false;
};

// What an arm attended to since start(), over rows (tokens in layers).
struct Attended {
  double kv_tokens = 0;  // mean a KV head attended, without what was generated since start()
  double q_tokens = 0;   // mean that a query head alone would take, likewise
  double share = 0;      // of the context, by KV head
  double bytes_share = 0;
  double dense_bytes_per_step = 0;
  double estimated_mass = 0;
  double true_mass = 0;  // only when asked for
  double success = 0;    // rows whose true mass reaches the arm's P, only when asked for
  double cluster_seconds = 0;
  double attention_us = 0;  // of a step, all layers
};

// Gone with its contents when it ends.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string path(const std::string& name) const { return path_ + "/" + name; }
  void empty() const;

 private:
  std::string path_;
};

class EvalEngine {
 public:
  explicit EvalEngine(const EngineOptions& options);

  const Model& model() const { return *model_; }
  Context& context() { return *context_; }
  const tactic_llama_control& control() const { return plugin_->control(); }
  int context_tokens() const { return options_.context; }
  int threads() const { return threads_; }
  std::uint64_t model_identity() const { return identity_; }
  // Of the plug-in's file: which build measured a sample.
  const std::string& build() const { return build_; }
  std::string method_problem(const eval::Arm& arm) const;  // empty: the plug-in knows it

  // The context holds `prompt`, read with the engine's own attention: from the cache, from what the context holds already, or
  // now. Returns the seconds that reading took when it was done. Throws Interrupted.
  double read(const Tokens& prompt);
  // Settings of the arm; the last tokens of the prompt (those of read() and `question`) once more, densely, so that every arm
  // sees the same queries and none sees another's; no clusters are left but those that an earlier arm of the same prompt,
  // question and settings of clustering made. budget 0: none. Throws Interrupted.
  void start(const eval::Arm& arm, double budget, std::span<const Token> question = {});
  // One token, attended by the arm. Throws Interrupted.
  std::span<const float> step(Token token);
  std::span<const float> logits() const { return context_->logits(); }
  Attended attended() const;
  int steps() const { return steps_; }

  // Called for each row of the steps that follow; with masses if asked. Empty ends it.
  void watch(std::function<void(const tactic_llama_trace&)> on_row, bool true_mass);

  void set(const std::string& name, const std::string& value) const;

 private:
  void decode(std::span<const Token> tokens, const char* what);
  void take_clusters(const eval::Arm& arm, std::span<const Token> question);
  void keep_clusters();
  void forget_prompt();
  bool restore(std::uint64_t key, const Tokens& prompt, double& seconds);
  std::string watch_path(std::uint64_t key) const;
  static void on_row(const tactic_llama_trace* row, void* self);
  void count(const tactic_llama_trace& row);

  EngineOptions options_;
  int threads_;
  std::optional<Cache> cache_;
  std::optional<Plugin> plugin_;
  std::optional<Model> model_;
  std::optional<Context> context_;
  std::uint64_t identity_ = 0;
  std::string build_;
  std::uint64_t held_key_ = 0;
  Tokens held_;                              // tokens of the prompt that the context holds
  TemporaryFolder temporary_;                // of the prompt that the context holds: KEY.index
  std::map<std::string, double> clustered_;  // files there, and the seconds that making them took
  std::string unkept_;                       // where to keep what the first step clusters; empty: nowhere
  double shared_seconds_ = 0;                // of clusters that an earlier arm made
  double mass_ = 0;
  int steps_ = 0;
  bool true_mass_ = false;
  std::function<void(const tactic_llama_trace&)> watcher_;
  struct Sums {
    double rows = 0, kv_tokens = 0, q_tokens = 0, true_mass = 0, success = 0;
  } sums_;
};

}  // namespace tactic::program
