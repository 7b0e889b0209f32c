// libllama as values that clean up after themselves: backends, model, context, tokens, state, sampling.
#pragma once

#include <ggml-backend.h>
#include <llama.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/cluster.h"
#include "document.h"

namespace tactic::program {

// Loads the engine's CPU backend and, unless `verbose`, silences its log. Once per program.
void start_engine(bool verbose);
std::string engine_version();
// Folder that the engine's libraries were loaded from.
std::string engine_folder();

// What attention needs to know of a model.
struct ModelShape {
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int trained_context = 0;
  int vocabulary = 0;
};

class Model {
 public:
  // `on_progress` is called with 0 .. 1. Throws Error(io), Error(corrupt) or Error(unsupported) naming file and remedy.
  Model(const std::string& path, const std::function<void(float)>& on_progress);

  llama_model* get() const { return model_.get(); }
  const std::string& path() const { return path_; }
  std::string description() const;  // "llama 135M Q4_1" or the like
  ModelShape shape() const;
  Rotary rotary() const;                            // layout unknown where the model scales it in a way we don't read
  std::string metadata(const char* key) const;      // empty: absent
  std::string meta_of_arch(const char* key) const;  // of "<architecture>.<key>"

  // add_start: the model's own first token, if it wants one. special: text like <|im_end|> becomes its token.
  Tokens tokenise(std::string_view text, bool add_start, bool special) const;
  std::string text_of(Token token) const;  // empty for control tokens; may be part of a character
  bool ends_answer(Token token) const;

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  std::unique_ptr<llama_model, Free> model_;
  std::string path_;
};

struct ContextOptions {
  int tokens = 0;   // context length; rounded up to what the engine allocates
  int batch = 512;  // tokens a pass of the prompt takes
  int threads = 0;
  bool flash_attention = true;
  ggml_backend_sched_eval_callback on_node = nullptr;  // sees every node of the graph (llama_context_params::cb_eval)
  void* on_node_data = nullptr;
};

// One sequence. All tokens get the next positions.
class Context {
 public:
  Context(const Model& model, const ContextOptions& options);

  // Runs the tokens in batches; `on_progress` gets the number done. False: interrupted, the sequence is where it got to.
  bool decode(std::span<const Token> tokens, const std::function<void(std::size_t)>& on_progress = {});
  std::span<const float> logits() const;  // of the last token decoded
  int length() const;
  void truncate(int tokens);  // forgets all but the first `tokens`

  std::vector<std::uint8_t> save_state() const;
  bool load_state(std::span<const std::uint8_t> state);  // replaces the sequence; false: it does not fit this context
  llama_context* get() const { return context_.get(); }

 private:
  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  std::unique_ptr<llama_context, Free> context_;
  int batch_;
};

// Picks the next token: the likeliest, or by temperature.
class Sampler {
 public:
  Sampler(float temperature, std::uint32_t seed);
  Token next(const Context& context);

 private:
  struct Free {
    void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
  };
  std::unique_ptr<llama_sampler, Free> sampler_;
};

}  // namespace tactic::program
