// Records queries, keys and values out of the engine's graph while it runs over a document.
#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "capture.h"
#include "core/error.h"
#include "core/half.h"
#include "core/options.h"
#include "engine.h"
#include "interrupt.h"
#include "progress.h"
#include "session.h"

namespace tactic::program {

// Sees every attention node through the engine's evaluation callback.
class Recorder {
 public:
  enum class Wanted { nothing, prompt_queries, step_queries, step_and_cache };

  explicit Recorder(int tokens) : tokens_(tokens) {}

  static bool on_node(ggml_tensor* node, bool ask, void* self) { return static_cast<Recorder*>(self)->see(node, ask); }
  void want(Wanted wanted) {
    wanted_ = wanted;
    layer_ = 0;
  }
  void check() const {
    if (!problem_.empty()) throw Error(Status::unsupported, problem_ + ": choose a model with plain attention in every layer");
  }
  int layers() const { return layer_; }
  Capture finish(const Model& model, Tokens tokens, int steps, int window, int layers);

 private:
  bool see(ggml_tensor* node, bool ask);
  void take_queries(const ggml_tensor* q, std::vector<float>& into) const;
  void take_rows(const ggml_tensor* rows, std::vector<std::uint16_t>& into) const;
  void take_shape(const ggml_tensor* node);

  int tokens_;
  Wanted wanted_ = Wanted::nothing;
  int layer_ = 0;
  std::string problem_;
  Shape shape_;
  AttentionParams params_;
  std::vector<float> by_layer_;  // prompt queries [layers, W, q_heads, head_dim]
  Capture::Storage storage_;
};

bool Recorder::see(ggml_tensor* node, bool ask) {
  const bool mine = wanted_ != Wanted::nothing && node->op == GGML_OP_FLASH_ATTN_EXT;
  if (ask || !mine) return ask ? mine : true;
  take_shape(node);
  if (!problem_.empty()) return true;
  take_queries(node->src[0], wanted_ == Wanted::prompt_queries ? by_layer_ : storage_.q);
  if (wanted_ == Wanted::step_and_cache) {
    take_rows(node->src[1], storage_.k);
    take_rows(node->src[2], storage_.v);
  }
  ++layer_;
  return true;
}

void Recorder::take_shape(const ggml_tensor* node) {
  const ggml_tensor* q = node->src[0];
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  const Shape shape = {.q_heads = static_cast<int>(q->ne[2]),
                       .kv_heads = static_cast<int>(k->ne[2]),
                       .head_dim = static_cast<int>(q->ne[0]),
                       .v_head_dim = static_cast<int>(v->ne[0])};
  float values[3] = {};  // scale, bias, softcap
  std::memcpy(values, node->op_params, sizeof values);
  if (shape_.q_heads == 0) {
    shape_ = shape;
    params_.scale = values[0];
    params_.softcap = values[2];
  }
  const bool same = shape.q_heads == shape_.q_heads && shape.kv_heads == shape_.kv_heads && shape.head_dim == shape_.head_dim &&
                    shape.v_head_dim == shape_.v_head_dim && values[0] == params_.scale && values[2] == params_.softcap;
  if (!same) problem_ = "layers of this model differ in their heads";
  if (q->type != GGML_TYPE_F32 || k->type != GGML_TYPE_F16 || v->type != GGML_TYPE_F16)
    problem_ = "K and V of this model are not f16";
  if (values[1] != 0 || node->src[4] != nullptr) problem_ = "this model has position biases or attention sinks";
  if (wanted_ == Wanted::step_and_cache && k->ne[1] < tokens_) problem_ = "layers of this model keep a sliding window only";
}

void Recorder::take_queries(const ggml_tensor* q, std::vector<float>& into) const {
  const auto* data = static_cast<const std::byte*>(q->data);
  const auto dim = static_cast<std::size_t>(q->ne[0]);
  for (std::int64_t token = 0; token < q->ne[1]; ++token) {
    for (std::int64_t head = 0; head < q->ne[2]; ++head) {
      const std::size_t at = into.size();
      into.resize(at + dim);
      std::memcpy(into.data() + at, data + static_cast<std::size_t>(token) * q->nb[1] + static_cast<std::size_t>(head) * q->nb[2],
                  dim * sizeof(float));
    }
  }
}

void Recorder::take_rows(const ggml_tensor* rows, std::vector<std::uint16_t>& into) const {
  const auto* data = static_cast<const std::byte*>(rows->data);
  const auto dim = static_cast<std::size_t>(rows->ne[0]);
  for (std::int64_t head = 0; head < rows->ne[2]; ++head) {
    for (int token = 0; token < tokens_; ++token) {  // a sequence of its own fills the cells in order
      const std::size_t at = into.size();
      into.resize(at + dim);
      std::memcpy(into.data() + at,
                  data + static_cast<std::size_t>(token) * rows->nb[1] + static_cast<std::size_t>(head) * rows->nb[2],
                  dim * sizeof(std::uint16_t));
    }
  }
}

Capture Recorder::finish(const Model& model, Tokens tokens, int steps, int window, int layers) {
  Capture capture;
  CaptureInfo& info = capture.info_;
  info.model = fmt::format("{} ({})", model.description(), std::filesystem::path(model.path()).filename().string());
  info.layers = layers;
  info.shape = shape_;
  info.prompt_tokens = static_cast<int>(tokens.size()) - steps;
  info.steps = steps;
  info.window = window;
  info.params = params_;
  info.rotary = model.rotary();
  Capture::Storage& storage = capture.storage_;
  storage = std::move(storage_);
  storage.tokens = std::move(tokens);
  // [layers, W, ...] to [W, layers, ...]
  const auto row = static_cast<std::size_t>(capture.row());
  storage.prompt_q.resize(by_layer_.size());
  for (int layer = 0; layer < layers; ++layer) {
    for (int token = 0; token < window; ++token) {
      const auto from = static_cast<std::size_t>(layer * window + token) * row;
      std::copy_n(by_layer_.begin() + static_cast<std::ptrdiff_t>(from), row,
                  storage.prompt_q.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(token * layers + layer) * row));
    }
  }
  capture.q_ = storage.q;
  capture.prompt_q_ = storage.prompt_q;
  capture.k_ = storage.k;
  capture.v_ = storage.v;
  capture.tokens_ = storage.tokens;
  return capture;
}

namespace {

// The document's tokens that are needed, or an error that says how many are missing.
Tokens take_tokens(const Model& model, const RecordOptions& options) {
  Tokens tokens = model.tokenise(read_document(options.file), true, false);
  const int context = model.shape().trained_context;
  const int most = std::min(static_cast<int>(tokens.size()), context);
  const int wanted = (options.tokens > 0 ? options.tokens : std::max(most - options.steps, 1)) + options.steps;
  if (wanted > context) {
    throw Error(Status::invalid_argument,
                fmt::format("--tokens and --steps are {} tokens, {} more than the model's context of {}: ask for fewer", wanted,
                            wanted - context, context));
  }
  if (wanted > static_cast<int>(tokens.size())) {
    throw Error(
        Status::invalid_argument,
        fmt::format("document {} has {} tokens, {} fewer than --tokens and --steps need: ask for fewer or name a longer one",
                    options.file, tokens.size(), wanted - static_cast<int>(tokens.size())));
  }
  tokens.resize(static_cast<std::size_t>(wanted));
  return tokens;
}

}  // namespace

Capture record(const RecordOptions& options) {
  start_engine(options.verbose);
  Progress loading("load model", 0, "");
  const Model model(options.model, {});
  loading.finish(fmt::format("  ({})", model.description()));
  Tokens tokens = take_tokens(model, options);
  const int prompt = static_cast<int>(tokens.size()) - options.steps;
  const int window = std::min(prompt, QueryMoment::kWindow);
  Recorder recorder(static_cast<int>(tokens.size()));
  Context context(model, {.tokens = static_cast<int>(tokens.size()),
                          .threads = options.threads > 0 ? options.threads : default_threads(),
                          .on_node = Recorder::on_node,
                          .on_node_data = &recorder});
  const auto run = [&](std::span<const Token> part, Progress& progress, int before) {
    const bool whole = context.decode(part, [&](std::size_t done) { progress.update(before + static_cast<double>(done)); });
    if (!whole) throw Interrupted{};
    recorder.check();
  };
  const std::span<const Token> all(tokens);
  Progress reading("read document", prompt, "tokens");
  run(all.first(static_cast<std::size_t>(prompt - window)), reading, 0);
  recorder.want(Recorder::Wanted::prompt_queries);
  run(all.subspan(static_cast<std::size_t>(prompt - window), static_cast<std::size_t>(window)), reading, prompt - window);
  const int layers = recorder.layers();
  reading.finish();
  Progress stepping("decode", options.steps, "steps");
  for (int step = 0; step < options.steps; ++step) {
    recorder.want(step + 1 == options.steps ? Recorder::Wanted::step_and_cache : Recorder::Wanted::step_queries);
    run(all.subspan(static_cast<std::size_t>(prompt + step), 1), stepping, step);
  }
  stepping.finish();
  if (layers == 0)
    throw Error(Status::unsupported, "this model has no attention to record: choose a model with attention layers");
  return recorder.finish(model, std::move(tokens), options.steps, window, layers);
}

}  // namespace tactic::program
