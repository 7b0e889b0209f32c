// A model that has read a document: from the options to a context that waits for a question's tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cache.h"
#include "engine.h"
#include "plugin.h"
#include "prompt.h"
#include "session_options.h"

namespace tactic::program {

// What reading took. Seconds of this run; 0 where the cache had it.
struct ReadingReport {
  double load_seconds = 0;
  double prefill_seconds = 0;           // document (if it was read now) and question
  double document_prefill_seconds = 0;  // of the document when it was read, now or earlier
  double cluster_seconds = 0;
  std::int64_t prefilled_tokens = 0;  // in this run
  std::int64_t cached_tokens = 0;     // from the cache
};

class Session {
 public:
  // Loads, reads, clusters, reads the question. Throws Error or Interrupted.
  explicit Session(const SessionOptions& options);

  const Model& model() const { return *model_; }
  Context& context() { return *context_; }
  Plugin* plugin() { return plugin_ ? &*plugin_ : nullptr; }
  const Prompt& prompt() const { return prompt_; }
  const ReadingReport& report() const { return report_; }
  int threads() const { return threads_; }
  int context_tokens() const { return context_tokens_; }

 private:
  bool clusters() const;  // the method has clusters
  void load_model();
  void read_document();
  void prefill(const Tokens& tokens, const char* what);
  bool sums_columns() const;  // the method needs what all tokens of the prompt looked at
  void check_budget();
  void cluster(std::uint64_t key);
  void end_prompt(std::uint64_t key);
  void show_last_queries();
  void cluster_now();

  SessionOptions options_;
  int threads_;
  int context_tokens_ = 0;
  std::optional<Cache> cache_;
  std::optional<Plugin> plugin_;
  std::optional<Model> model_;
  std::optional<Context> context_;
  Prompt prompt_;
  ReadingReport report_;
};

int default_threads();

}  // namespace tactic::program
