// libllama as values that clean up after themselves: backends, model, context, tokens, state, sampling.
#include "engine.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "interrupt.h"

namespace tactic::program {
namespace {

// The engine's log is one global callback: what it said last that explains a failure is kept here for our own message.
struct EngineLog {
  bool verbose = false;
  std::string reason;
};

EngineLog& engine_log() {
  static EngineLog log;
  return log;
}

void take_log(ggml_log_level level, const char* text, void* data) {
  auto* log = static_cast<EngineLog*>(data);
  if (log->verbose) std::fputs(text, stderr);
  if (level != GGML_LOG_LEVEL_ERROR) return;
  std::string_view line(text);
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
  if (const std::size_t colon = line.find(": "); colon != std::string_view::npos) line.remove_prefix(colon + 2);
  if (log->reason.empty()) log->reason = line;  // the first error is the cause, later ones are its consequences
}

std::string take_reason() {
  std::string reason = std::move(engine_log().reason);
  engine_log().reason.clear();
  std::replace(reason.begin(), reason.end(), '\n', ' ');
  return reason.empty() ? "no reason given" : reason;
}

void check_model_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw Error(Status::io, fmt::format("model {} is a directory: name a .gguf file with --model", path));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw Error(Status::io,
                fmt::format("model {} cannot be read ({}): name a .gguf file with --model", path, std::strerror(errno)));
  }
  char magic[4] = {};
  if (!file.read(magic, sizeof magic) || std::memcmp(magic, "GGUF", 4) != 0) {
    throw Error(Status::corrupt, fmt::format("model {} is not a GGUF file: name one with --model (other formats can be converted "
                                             "with llama.cpp's convert_hf_to_gguf.py)",
                                             path));
  }
}

float number(const std::string& text, float otherwise) {
  float value = otherwise;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && std::isfinite(value) ? value : otherwise;
}

}  // namespace

std::string engine_folder() {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&ggml_backend_load_all_from_path), &info) == 0 || info.dli_fname == nullptr)
    return ".";
  return std::filesystem::absolute(info.dli_fname).parent_path().string();
}

void start_engine(bool verbose) {
  engine_log().verbose = verbose;
  llama_log_set(take_log, &engine_log());
  ggml_backend_load_all_from_path(engine_folder().c_str());
  if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
    throw Error(Status::unsupported,
                fmt::format("no CPU backend of the engine in {}: put libggml-cpu*.so there, or build again", engine_folder()));
  }
  llama_backend_init();
}

std::string engine_version() { return fmt::format("llama.cpp {}, ggml {}", llama_version(), ggml_version()); }

Model::Model(const std::string& path, const std::function<void(float)>& on_progress) : path_(path) {
  check_model_file(path);
  llama_model_params params = llama_model_default_params();
  params.progress_callback = [](float done, void* data) {
    const auto& report = *static_cast<const std::function<void(float)>*>(data);
    if (report) report(done);
    return !interrupted();
  };
  auto report = on_progress;
  params.progress_callback_user_data = &report;
  engine_log().reason.clear();
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) {
    const std::string reason = take_reason();
    const bool unknown = reason.find("architecture") != std::string::npos;
    throw Error(unknown ? Status::unsupported : Status::corrupt,
                fmt::format("model {} cannot be loaded ({}): {}", path, reason,
                            unknown ? "choose a model whose architecture this llama.cpp knows"
                                    : "fetch it again, it may be cut short or damaged"));
  }
  llama_model* model = model_.get();
  if (!llama_model_has_decoder(model) || llama_model_has_encoder(model) || llama_model_is_recurrent(model) ||
      llama_model_is_diffusion(model)) {
    throw Error(Status::unsupported, fmt::format("model {} ({}) is not a decoder with attention over a KV cache: choose another",
                                                 path, metadata("general.architecture")));
  }
}

std::string Model::metadata(const char* key) const {
  char value[256] = {};
  return llama_model_meta_val_str(model_.get(), key, value, sizeof value) < 0 ? "" : value;
}

std::string Model::meta_of_arch(const char* key) const {
  return metadata((metadata("general.architecture") + "." + key).c_str());
}

std::string Model::description() const {
  char text[256] = {};
  llama_model_desc(model_.get(), text, sizeof text);
  return text;
}

ModelShape Model::shape() const {
  const llama_model* model = model_.get();
  return {.layers = llama_model_n_layer(model),
          .q_heads = llama_model_n_head(model),
          .kv_heads = llama_model_n_head_kv(model),
          .trained_context = llama_model_n_ctx_train(model),
          .vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model))};
}

Rotary Model::rotary() const {
  Rotary rotary;
  const llama_rope_type type = llama_model_rope_type(model_.get());
  if (type == LLAMA_ROPE_TYPE_NONE) rotary.layout = Rotary::Layout::none;
  if (type != LLAMA_ROPE_TYPE_NORM && type != LLAMA_ROPE_TYPE_NEOX) return rotary;
  if (!meta_of_arch("rope.scaling.type").empty() && meta_of_arch("rope.scaling.type") != "none") return rotary;
  const ModelShape heads = shape();
  const float embedding = static_cast<float>(llama_model_n_embd(model_.get()));
  const float head_dim = number(meta_of_arch("attention.key_length"), embedding / static_cast<float>(heads.q_heads));
  const float dims = number(meta_of_arch("rope.dimension_count"), head_dim);
  const float base = number(meta_of_arch("rope.freq_base"), 10000.0f);  // the engine's default, too
  rotary.layout = type == LLAMA_ROPE_TYPE_NORM ? Rotary::Layout::interleaved : Rotary::Layout::halves;
  for (int pair = 0; pair < static_cast<int>(dims) / 2; ++pair) {
    rotary.frequency.push_back(std::pow(base, -2.0f * static_cast<float>(pair) / dims));
  }
  return rotary;
}

Tokens Model::tokenise(std::string_view text, bool add_start, bool special) const {
  if (text.empty() && !add_start) return {};
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  const auto length = static_cast<std::int32_t>(text.size());
  Tokens tokens(text.size() / 3 + 16);
  std::int32_t count =
      llama_tokenize(vocab, text.data(), length, tokens.data(), static_cast<std::int32_t>(tokens.size()), add_start, special);
  if (count < 0) {
    tokens.resize(static_cast<std::size_t>(-static_cast<std::int64_t>(count)));
    count =
        llama_tokenize(vocab, text.data(), length, tokens.data(), static_cast<std::int32_t>(tokens.size()), add_start, special);
  }
  if (count < 0) throw Error(Status::internal, "the engine could not tokenise the text: shorten it");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string Model::text_of(Token token) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  std::string text(64, '\0');
  std::int32_t length = llama_token_to_piece(vocab, token, text.data(), static_cast<std::int32_t>(text.size()), 0, false);
  if (length < 0) {
    text.resize(static_cast<std::size_t>(-length));
    length = llama_token_to_piece(vocab, token, text.data(), static_cast<std::int32_t>(text.size()), 0, false);
  }
  text.resize(static_cast<std::size_t>(std::max(length, 0)));
  return text;
}

bool Model::ends_answer(Token token) const { return llama_vocab_is_eog(llama_model_get_vocab(model_.get()), token); }

Context::Context(const Model& model, const ContextOptions& options) : batch_(options.batch) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.tokens);
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(options.batch);
  params.n_threads = params.n_threads_batch = options.threads;
  params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.cb_eval = options.on_node;
  params.cb_eval_user_data = options.on_node_data;
  params.abort_callback = [](void*) { return interrupted(); };
  engine_log().reason.clear();
  context_.reset(llama_init_from_model(model.get(), params));
  if (!context_) {
    throw Error(Status::out_of_memory, fmt::format("no context of {} tokens for {} ({}): free memory or pass a shorter document",
                                                   options.tokens, model.path(), take_reason()));
  }
}

bool Context::decode(std::span<const Token> tokens, const std::function<void(std::size_t)>& on_progress) {
  // Equal batches: a last one of a few tokens would count as decoding to the plug-in.
  const auto most = static_cast<std::size_t>(batch_);
  const std::size_t batches = (tokens.size() + most - 1) / most;
  std::size_t done = 0;
  for (std::size_t batch = 0; batch < batches; ++batch) {
    if (interrupted()) return false;
    Tokens part(tokens.begin() + static_cast<std::ptrdiff_t>(done),
                tokens.begin() + static_cast<std::ptrdiff_t>(tokens.size() * (batch + 1) / batches));
    const int failed = llama_decode(context_.get(), llama_batch_get_one(part.data(), static_cast<std::int32_t>(part.size())));
    if (failed == 2) return false;
    if (failed != 0) {
      throw Error(Status::internal, fmt::format("the engine failed at token {} (code {}, {}): run with --verbose to see its log",
                                                length(), failed, take_reason()));
    }
    llama_synchronize(context_.get());
    done += part.size();
    if (on_progress) on_progress(done);
  }
  return true;
}

std::span<const float> Context::logits() const {
  const llama_vocab* vocab = llama_model_get_vocab(llama_get_model(context_.get()));
  return {llama_get_logits_ith(context_.get(), -1), static_cast<std::size_t>(llama_vocab_n_tokens(vocab))};
}

int Context::length() const { return llama_memory_seq_pos_max(llama_get_memory(context_.get()), 0) + 1; }

void Context::truncate(int tokens) {
  if (!llama_memory_seq_rm(llama_get_memory(context_.get()), 0, tokens, -1)) {
    throw Error(Status::unsupported,
                "this model's memory cannot go back to an earlier token: choose a model with a plain KV cache");
  }
}

std::vector<std::uint8_t> Context::save_state() const {
  std::vector<std::uint8_t> state(llama_state_seq_get_size(context_.get(), 0));
  state.resize(llama_state_seq_get_data(context_.get(), state.data(), state.size(), 0));
  if (state.empty())
    throw Error(Status::internal, fmt::format("the engine could not save its state ({}): pass --no-cache", take_reason()));
  return state;
}

bool Context::load_state(std::span<const std::uint8_t> state) {
  llama_memory_clear(llama_get_memory(context_.get()), true);
  engine_log().reason.clear();
  return llama_state_seq_set_data(context_.get(), state.data(), state.size(), 0) != 0;
}

Sampler::Sampler(float temperature, std::uint32_t seed)
    : sampler_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
  if (temperature > 0) {
    llama_sampler_chain_add(sampler_.get(), llama_sampler_init_temp(temperature));
    llama_sampler_chain_add(sampler_.get(), llama_sampler_init_dist(seed));
  } else {
    llama_sampler_chain_add(sampler_.get(), llama_sampler_init_greedy());
  }
}

Token Sampler::next(const Context& context) { return llama_sampler_sample(sampler_.get(), context.get(), -1); }

}  // namespace tactic::program
