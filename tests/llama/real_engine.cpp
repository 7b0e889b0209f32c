#include "real_engine.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace tactic::test {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

RealEngine& RealEngine::instance() {
  static RealEngine engine;
  return engine;
}

RealEngine::RealEngine() {
  const std::string path = variable("TACTIC_TEST_MODEL");
  if (path.empty()) return;
  setenv("TACTIC_METHOD", "stock", 1);  // each test says what it wants
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(variable("TACTIC_TEST_ENGINE").c_str());
  // As the engine does it, more than once: the second must change nothing.
  for (int i = 0; i < 2; ++i) ggml_backend_load(variable("TACTIC_LLAMA_LIB").c_str());
  const ggml_backend_reg_t registry = ggml_backend_reg_by_name("Tactic");
  if (registry == nullptr) throw std::runtime_error("the plug-in was not loaded from " + variable("TACTIC_LLAMA_LIB"));
  const auto get = reinterpret_cast<tactic_llama_control_fn>(ggml_backend_reg_get_proc_address(registry, TACTIC_LLAMA_CONTROL));
  control_ = get();

  model_ = llama_model_load_from_file(path.c_str(), llama_model_default_params());
  if (model_ == nullptr) throw std::runtime_error("cannot load " + path);
  std::ifstream in(variable("TACTIC_TEST_TEXT"), std::ios::binary);
  std::string text(40000, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  text_.resize(text.size());
  const int count = llama_tokenize(llama_model_get_vocab(model_), text.data(), static_cast<int>(text.size()), text_.data(),
                                   static_cast<int>(text_.size()), false, false);
  text_.resize(static_cast<std::size_t>(std::max(0, count)));
}

Tokens RealEngine::text(int first, int count) const {
  if (static_cast<std::size_t>(first + count) > text_.size()) throw std::runtime_error("the text is too short");
  return {text_.begin() + first, text_.begin() + first + count};
}

void RealEngine::set(const char* name, const char* value) const {
  if (control_->set(name, value) != 0) throw std::runtime_error(control_->last_error());
}

tactic_llama_stats RealEngine::stats() const {
  tactic_llama_stats stats{};
  stats.size = sizeof stats;
  control_->read_stats(&stats);
  return stats;
}

Context::Context(const ContextOptions& options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.size);
  params.n_batch = 512;
  params.n_threads = params.n_threads_batch = 2;
  params.n_seq_max = static_cast<std::uint32_t>(options.sequences);
  params.kv_unified = options.unified;
  params.flash_attn_type = options.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = options.kv_type;
  context_.reset(llama_init_from_model(RealEngine::instance().model(), params));
  if (!context_) throw std::runtime_error("no context");
}

std::vector<Logits> Context::decode_all(const Tokens& tokens, const std::vector<int>& positions,
                                        const std::vector<int>& sequences) {
  llama_batch batch = llama_batch_init(static_cast<int>(tokens.size()), 0, 1);
  batch.n_tokens = static_cast<int>(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = positions[i];
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = sequences[i];
    batch.logits[i] = 1;
  }
  const int status = llama_decode(context_.get(), batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode failed");
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(RealEngine::instance().model()));
  std::vector<Logits> all;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const float* row = llama_get_logits_ith(context_.get(), static_cast<int>(i));
    all.emplace_back(row, row + vocabulary);
  }
  return all;
}

Logits Context::decode(const Tokens& tokens, int position, int sequence) {
  Logits last;
  for (std::size_t at = 0; at < tokens.size(); at += 512) {
    const std::size_t n = std::min<std::size_t>(512, tokens.size() - at);
    const Tokens piece(tokens.begin() + static_cast<std::ptrdiff_t>(at), tokens.begin() + static_cast<std::ptrdiff_t>(at + n));
    std::vector<int> positions, sequences(n, sequence);
    for (std::size_t i = 0; i < n; ++i) positions.push_back(position + static_cast<int>(at + i));
    last = decode_all(piece, positions, sequences).back();
  }
  return last;
}

std::vector<Logits> Context::follow(const Tokens& tokens, int position, int sequence) {
  std::vector<Logits> all;
  for (const llama_token token : tokens) all.push_back(decode({token}, position++, sequence));
  return all;
}

Tokens Context::greedy(llama_token first, int position, int steps) {
  Tokens out;
  for (int i = 0; i < steps; ++i) {
    first = best(decode({first}, position + i));
    out.push_back(first);
  }
  return out;
}

std::vector<std::uint8_t> Context::state(int sequence) const {
  std::vector<std::uint8_t> bytes(llama_state_seq_get_size(context_.get(), sequence));
  bytes.resize(llama_state_seq_get_data(context_.get(), bytes.data(), bytes.size(), sequence));
  return bytes;
}

void Context::restore(const std::vector<std::uint8_t>& state, int sequence) {
  if (llama_state_seq_set_data(context_.get(), state.data(), state.size(), sequence) == 0)
    throw std::runtime_error("restore failed");
}

llama_token best(const Logits& logits) {
  return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double divergence(const Logits& a, const Logits& b) {
  const auto log_sum = [](const Logits& x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const float v : x) sum += std::exp(v - most);
    return most + std::log(sum);
  };
  const double za = log_sum(a), zb = log_sum(b);
  double kl = 0;
  for (std::size_t i = 0; i < a.size(); ++i) kl += std::exp(a[i] - za) * ((a[i] - za) - (b[i] - zb));
  return kl;
}

double mean_divergence(const std::vector<Logits>& a, const std::vector<Logits>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += divergence(a[i], b[i]);
  return sum / static_cast<double>(a.size());
}

}  // namespace tactic::test
