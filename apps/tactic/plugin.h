// The program's side of integrations/llama/control.h: loads libtactic-llama.so into the engine and talks to it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine.h"
#include "llama/control.h"
#include "method.h"

namespace tactic::program {

// The plug-in stays loaded as long as the process, as the engine keeps pointers into it.
class Plugin {
 public:
  // TACTIC_LLAMA_LIB, or libtactic-llama.so beside the program or in its ../lib. Before the first context is made. Throws
  // Error(unsupported) that names the file and the remedy.
  explicit Plugin(int threads);

  // Takes effect with the next decode.
  void use(const MethodOptions& options);
  // Hash of the options that clusters depend on.
  std::uint64_t cluster_options() const;

  // All of it, for what the functions here do not cover.
  const tactic_llama_control& control() const { return *control_; }

  tactic_llama_stats stats() const;
  void reset_stats() const { control_->reset_stats(); }
  void save_index(const std::string& path) const;  // written beside and renamed; throws Error(io)
  void load_index(const std::string& path) const;  // throws Error(corrupt) naming file and remedy
  // Of what the last use() asked for, before minutes of work. Throws Error(invalid_argument) for a budget that is too small for
  // the method, or of another model.
  void check_budget(const ModelShape& shape, std::int64_t prompt_tokens) const;
  void save_budgets(const std::string& path) const;  // throws Error(io)
  void save_watch(const std::string& path) const;    // written beside and renamed; throws Error(io)
  void load_watch(const std::string& path) const;    // throws Error(corrupt) naming file and remedy
  // `on_layer` is called after each layer of a decode step; empty ends it.
  void watch_layers(std::function<void()> on_layer);

 private:
  void set(const char* name, const std::string& value) const;

  const tactic_llama_control* control_ = nullptr;
  std::function<void()> on_layer_;
};

}  // namespace tactic::program
