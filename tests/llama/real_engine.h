// The engine under test: libllama with the plug-in loaded, one small model, texts as tokens.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control.h"

namespace tactic::test {

using Tokens = std::vector<llama_token>;
using Logits = std::vector<float>;

// Model, plug-in and control functions; made once. Null control: the plug-in did not load, which fails the test that asks.
class RealEngine {
 public:
  static RealEngine& instance();

  bool available() const { return model_ != nullptr; }
  llama_model* model() const { return model_; }
  const tactic_llama_control& control() const { return *control_; }
  int layers() const { return llama_model_n_layer(model_); }
  // Tokens [first, first + count) of the long text.
  Tokens text(int first, int count) const;
  void set(const char* name, const char* value) const;
  tactic_llama_stats stats() const;

 private:
  RealEngine();
  llama_model* model_ = nullptr;
  const tactic_llama_control* control_ = nullptr;
  Tokens text_;
};

struct ContextOptions {
  int size = 2048;
  bool flash = true;
  ggml_type kv_type = GGML_TYPE_F16;
  int sequences = 1;
  bool unified = true;
};

// One llama_context.
class Context {
 public:
  explicit Context(const ContextOptions& options = {});

  llama_context* get() const { return context_.get(); }
  llama_memory_t memory() const { return llama_get_memory(context_.get()); }
  // Decodes tokens of sequence `sequence` from `position` on in one batch (chunks of 512); logits of the last token.
  Logits decode(const Tokens& tokens, int position, int sequence = 0);
  // One batch; logits of all tokens.
  std::vector<Logits> decode_all(const Tokens& tokens, const std::vector<int>& positions, const std::vector<int>& sequences);
  // Each token in a step of its own; logits after each.
  std::vector<Logits> follow(const Tokens& tokens, int position, int sequence = 0);
  // Greedy continuation of `steps` tokens after `first`.
  Tokens greedy(llama_token first, int position, int steps);

  std::vector<std::uint8_t> state(int sequence = 0) const;
  void restore(const std::vector<std::uint8_t>& state, int sequence = 0);

 private:
  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  std::unique_ptr<llama_context, Free> context_;
};

llama_token best(const Logits& logits);
// KL(a || b) in nats.
double divergence(const Logits& a, const Logits& b);
double mean_divergence(const std::vector<Logits>& a, const std::vector<Logits>& b);

}  // namespace tactic::test
