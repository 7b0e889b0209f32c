// A model that has read a document: from the options to a context that waits for a question's tokens.
#include "session.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <filesystem>

#include "core/error.h"
#include "interrupt.h"
#include "progress.h"

namespace tactic::program {

int default_threads() {
  cpu_set_t mask;
  return sched_getaffinity(0, sizeof mask, &mask) == 0 ? std::max(1, CPU_COUNT(&mask)) : 1;
}

Session::Session(const SessionOptions& options)
    : options_(options), threads_(options.threads > 0 ? options.threads : default_threads()) {
  const std::string document = program::read_document(options_.file);  // first what fails fast
  if (options_.use_cache) cache_.emplace(options_.cache.empty() ? Cache::default_folder() : options_.cache);
  start_engine(options_.verbose);
  if (options_.plugin) {
    plugin_.emplace(threads_);
    plugin_->use({.method = "stock"});
  }
  load_model();
  prompt_ = make_prompt(*model_, document, options_.question, options_.context, options_.tokens, options_.truncate);
  // One more for the token that makes the plug-in cluster and one that a comparison warms up with.
  context_tokens_ = static_cast<int>(prompt_.size()) + options_.tokens + 2;
  context_.emplace(*model_, ContextOptions{.tokens = context_tokens_, .threads = threads_});
  if (plugin_ && options_.method.baseline()) check_budget();
  read_document();
  prefill(prompt_.closing, "question");
  if (plugin_) plugin_->use(options_.method);
}

void Session::load_model() {
  Progress progress("load model", 100, "%");
  model_.emplace(options_.model, [&](float done) { progress.update(100.0 * static_cast<double>(done)); });
  report_.load_seconds = progress.seconds();
  progress.update(0);
  progress.finish(fmt::format("  ({})", model_->description()));
}

void Session::read_document() {
  std::uint64_t key = 0;
  if (cache_) {
    key = Cache::key_of(*model_, prompt_.kept);
    const bool watched = !sums_columns() || std::filesystem::exists(cache_->watch_path(key));
    if (auto found = watched ? cache_->find(key, prompt_.kept) : std::nullopt) {
      if (!context_->load_state(found->state) || context_->length() != static_cast<int>(prompt_.kept.size())) {
        throw Error(
            Status::corrupt,
            fmt::format("cache folder {} holds a state that the engine refuses: empty it, or pass --no-cache", cache_->folder()));
      }
      report_.cached_tokens = static_cast<std::int64_t>(prompt_.kept.size());
      report_.document_prefill_seconds = found->prefill_seconds;
      fmt::print(stderr, "document: {} tokens from the cache {}\n", prompt_.kept.size(), cache_->folder());
      cluster(key);
      return;
    }
  }
  const bool watches = clusters() || options_.method.baseline().has_value();
  if (plugin_ && watches) plugin_->use(options_.method);  // it watches the queries of the last tokens: they shape the clusters
  prefill(prompt_.kept, "document");
  report_.document_prefill_seconds = report_.prefill_seconds;
  if (cache_) {
    CachedDocument document{.state = context_->save_state(), .prefill_seconds = report_.prefill_seconds};
    cache_->keep(key, prompt_.kept, document);
  }
  cluster(key);
}

void Session::prefill(const Tokens& tokens, const char* what) {
  Progress progress(fmt::format("read {}", what), static_cast<double>(tokens.size()), "tokens");
  const bool whole = context_->decode(tokens, [&](std::size_t done) { progress.update(static_cast<double>(done)); });
  report_.prefill_seconds += progress.seconds();
  report_.prefilled_tokens += static_cast<std::int64_t>(tokens.size());
  if (!whole) throw Interrupted{};
  progress.update(static_cast<double>(tokens.size()));
  progress.finish();
}

bool Session::clusters() const { return options_.method.method == "tactic" || options_.method.method == "paper"; }

bool Session::sums_columns() const { return options_.method.baseline() == Baseline::h2o; }

// A budget that does not fit ends here, not behind minutes of reading.
void Session::check_budget() {
  plugin_->use(options_.method);
  plugin_->check_budget(model_->shape(), static_cast<std::int64_t>(prompt_.kept.size()));
  plugin_->use({.method = "stock"});
}

// The clusters are those of the kept part alone, so that they serve every question.
void Session::cluster(std::uint64_t key) {
  if (plugin_ && options_.method.baseline()) end_prompt(key);
  if (!plugin_ || !clusters()) return;
  plugin_->use(options_.method);
  const std::string path = cache_ ? cache_->index_path(key, plugin_->cluster_options()) : "";
  if (cache_ && report_.cached_tokens > 0 && std::filesystem::exists(path)) {
    plugin_->load_index(path);
  } else {
    if (report_.cached_tokens > 0) show_last_queries();
    cluster_now();
    if (cache_) plugin_->save_index(path);
  }
  plugin_->use({.method = "stock"});  // the question is read with the engine's own attention
}

// The prompt of a baseline is the kept part too: one step makes it choose there.
void Session::end_prompt(std::uint64_t key) {
  plugin_->use(options_.method);
  if (report_.cached_tokens > 0) {
    show_last_queries();
    if (sums_columns()) plugin_->load_watch(cache_->watch_path(key));
  } else if (cache_ && sums_columns()) {
    plugin_->save_watch(cache_->watch_path(key));
  }
  const int length = context_->length();
  if (!context_->decode(std::span(prompt_.closing).first(1))) throw Interrupted{};
  context_->truncate(length);
  plugin_->use({.method = "stock"});
}

// The cache has K and V but no queries: the last tokens once more, for the plug-in to see theirs.
void Session::show_last_queries() {
  const std::span<const Token> kept(prompt_.kept);
  const std::size_t count = std::min<std::size_t>(kept.size() - 1, QueryMoment::kWindow);
  context_->truncate(static_cast<int>(kept.size() - count));
  if (!context_->decode(kept.last(count))) throw Interrupted{};
}

void Session::cluster_now() {
  // The plug-in clusters in the first decode step: take one with the question's first token and forget it again.
  const int length = context_->length();
  const int layers = model_->shape().layers;
  Progress progress("cluster", layers, "layers");
  int done = 0;
  plugin_->reset_stats();
  plugin_->watch_layers([&] { progress.update(++done); });
  const bool whole = context_->decode(std::span(prompt_.closing).first(1));
  plugin_->watch_layers({});
  if (!whole) throw Interrupted{};
  context_->truncate(length);
  const tactic_llama_stats stats = plugin_->stats();
  report_.cluster_seconds = stats.cluster_seconds;
  progress.finish();
}

}  // namespace tactic::program
