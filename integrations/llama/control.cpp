// The functions of control.h.
#include "control.h"

#include <exception>
#include <string>

#include "caches.h"
#include "index_file.h"
#include "plugin.h"
#include "shared.h"
#include "watch_file.h"

namespace tactic::llama {
namespace {

thread_local std::string t_error;
thread_local std::string t_value;

// Runs `work`; an exception becomes -1 and last_error().
template <typename Work>
int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    t_error = error.what();
    return -1;
  }
}

const char* last_error() { return t_error.c_str(); }

int set(const char* name, const char* value) {
  return guarded([&] {
    auto next = std::make_shared<Settings>(*Shared::instance().settings());
    next->set(name, value);
    Shared::instance().set(std::move(next));
  });
}

const char* get(const char* name) {
  const auto value = Shared::instance().settings()->get(name);
  if (!value) return nullptr;
  t_value = *value;
  return t_value.c_str();
}

void read_stats(tactic_llama_stats* stats) { Shared::instance().read(*stats); }
void reset_stats() { Shared::instance().reset(); }

void set_trace(tactic_llama_trace_fn trace, void* user, unsigned flags) {
  Shared::instance().set_trace({trace, user, (flags & TACTIC_TRACE_TRUE_MASS) != 0});
}

int save(const char* path) {
  return guarded([&] { save_index(path); });
}
int load(const char* path) {
  return guarded([&] { load_index(path); });
}
void drop() { drop_indexes(); }

int keep_budgets(const char* path) {
  return guarded([&] { write_budgets(path, Shared::instance().budgets()); });
}
void restart_prompt() {
  Caches::instance().for_each([](Layer& layer) { layer.restart_prompt(); });
}
int keep_watch(const char* path) {
  return guarded([&] { save_watch(path); });
}
int take_watch(const char* path) {
  return guarded([&] { load_watch(path); });
}
int check_budget(int layers, int q_heads, int kv_heads, std::int64_t prompt_tokens) {
  return guarded([&] {
    const auto settings = Shared::instance().settings();
    if (settings->mode() != Mode::baseline) return;
    const Shape shape{q_heads, kv_heads, 64, 64};  // budgets do not depend on the head size
    check_budgets(settings->baseline_options(), settings->baseline().budget(), shape, layers, prompt_tokens);
  });
}
const char* step_error() {
  t_value = Shared::instance().take_failure();
  return t_value.c_str();
}

const tactic_llama_control kControl = {sizeof(tactic_llama_control),
                                       last_error,
                                       set,
                                       get,
                                       read_stats,
                                       reset_stats,
                                       set_trace,
                                       save,
                                       load,
                                       drop,
                                       keep_budgets,
                                       restart_prompt,
                                       keep_watch,
                                       take_watch,
                                       check_budget,
                                       step_error};

}  // namespace

const tactic_llama_control* control() { return &kControl; }

}  // namespace tactic::llama
