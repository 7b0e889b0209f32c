// Records the attention of a window out of the plug-in's trace.
#include "eval_capture.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/half.h"
#include "interrupt.h"
#include "session.h"

namespace tactic::program {
namespace {

constexpr int kRows = 16;  // rows of a pass that the plug-in takes one by one (its most)

void take_row(const tactic_llama_trace& row, bool of_prompt, WindowAttention& window) {
  const auto layer = static_cast<std::size_t>(row.layer);
  if (window.layers.size() <= layer) window.layers.resize(layer + 1);
  LayerAttention& at = window.layers[layer];
  window.shape = {row.q_heads, row.kv_heads, row.head_dim, row.v_head_dim};
  window.params.scale = row.scale;
  auto& into = of_prompt ? at.prompt_q : at.q;
  into.insert(into.end(), row.q, row.q + window.row());
  at.kv = view_of(row);
  at.kv.block_table = nullptr;  // the trace's cells are gone with it: kv() takes at.cells
  at.cells.clear();
  if (row.cells != nullptr) at.cells.assign(row.cells, row.cells + row.tokens);
}

void refuse_unusual(const Model& model) {
  for (const char* key : {"attn_logit_softcapping", "attention.sliding_window"}) {
    const std::string value = model.meta_of_arch(key);
    if (!value.empty() && value != "0") {
      throw Error(Status::unsupported, fmt::format("model {} has {} = {}: choose one with plain attention for this experiment",
                                                   model.path(), key, value));
    }
  }
}

}  // namespace

KvView view_of(const tactic_llama_trace& row) {
  const auto rows = [](const tactic_llama_rows& r) {
    return Rows{.data = static_cast<const std::byte*>(r.data),
                .type = static_cast<DType>(r.type),
                .dim = r.dim,
                .token_stride = r.cell_stride,
                .head_stride = r.head_stride,
                .block_stride = r.cell_stride};
  };
  return {.k = rows(row.k), .v = rows(row.v), .kv_heads = row.kv_heads, .tokens = row.tokens, .block_table = row.cells};
}

KvView WindowAttention::kv(int layer, std::int64_t tokens) const {
  const LayerAttention& at = layers[static_cast<std::size_t>(layer)];
  KvView view = at.kv;
  view.tokens = tokens;
  view.block_table = at.cells.empty() ? nullptr : at.cells.data();
  return view;
}

const float* WindowAttention::query(int layer, int step, int head) const {
  return layers[static_cast<std::size_t>(layer)].q.data() + step * row() + std::int64_t{head} * shape.head_dim;
}

WindowAttention capture_window(EvalEngine& engine, const Window& window) {
  refuse_unusual(engine.model());
  WindowAttention result;
  result.rotary = engine.model().rotary();
  result.prompt_tokens = static_cast<std::int64_t>(window.prompt.size());
  result.steps = static_cast<int>(window.steps.size());
  engine.read(window.prompt);
  eval::Arm full;
  full.method = "full";
  full.settings = {{"max_rows", std::to_string(kRows)}};
  bool of_prompt = true;
  engine.watch([&](const tactic_llama_trace& row) { take_row(row, of_prompt, result); }, false);
  try {
    engine.start(full, 0);
    const int queries = std::min(QueryMoment::kWindow, static_cast<int>(window.prompt.size()) - 1);
    engine.context().truncate(static_cast<int>(window.prompt.size()) - queries);
    for (int first = queries; first > 0; first -= kRows) {
      const auto rows = static_cast<std::size_t>(std::min(first, kRows));
      if (!engine.context().decode(
              std::span(window.prompt).subspan(window.prompt.size() - static_cast<std::size_t>(first), rows)))
        throw Interrupted{};
    }
    result.prompt_queries = queries;
    of_prompt = false;
    for (const Token token : window.steps) engine.step(token);
  } catch (...) {
    engine.watch({}, false);
    throw;
  }
  engine.watch({}, false);
  engine.set("max_rows", "8");
  if (result.layers.empty() || result.layers.back().q.size() != static_cast<std::size_t>(result.steps * result.row())) {
    throw Error(Status::unsupported, fmt::format("Tactic does not compute every layer of {}: choose a model with plain attention",
                                                 engine.model().path()));
  }
  return result;
}

double exact_weights(const WindowAttention& window, int layer, int step, int head, std::vector<double>& weights) {
  const std::int64_t tokens = window.prompt_tokens + step + 1;
  const KvView kv = window.kv(layer, tokens);
  const float* q = window.query(layer, step, head);
  const int kv_head = head / window.shape.group();
  const auto dim = static_cast<std::size_t>(window.shape.head_dim);
  weights.resize(static_cast<std::size_t>(tokens));
  double top = -INFINITY;
  std::vector<float> key(dim);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::byte* bytes = row(kv, kv.k, t, kv_head);
    for (std::size_t i = 0; i < dim; ++i) key[i] = load_element(bytes, kv.k.type, i);
    double lanes[8] = {};  // one chain of additions would wait for each
    for (std::size_t i = 0; i < dim; i += 8) {
      for (std::size_t l = 0; l < 8; ++l) lanes[l] += static_cast<double>(q[i + l]) * static_cast<double>(key[i + l]);
    }
    double dot = 0;
    for (const double lane : lanes) dot += lane;
    weights[static_cast<std::size_t>(t)] = dot * static_cast<double>(window.params.scale);
    top = std::max(top, weights[static_cast<std::size_t>(t)]);
  }
  double sum = 0;
  for (double& w : weights) {
    w = std::exp(w - top);
    sum += w;
  }
  return sum;
}

namespace {

template <typename T>
T parsed(EvalEngine& engine, const char* name) {
  const char* text = engine.control().get(name);
  T value{};
  const std::string held = text == nullptr ? "" : text;
  std::from_chars(held.data(), held.data() + held.size(), value);
  return value;
}

}  // namespace

Options options_of(EvalEngine& engine, const eval::Arm& arm) {
  engine.set("preset", arm.method == "paper" ? "paper" : "tactic");
  engine.set("method", arm.method);
  for (const auto& [name, value] : arm.settings) engine.set(name, value);
  Options o = arm.method == "paper" ? paper_options() : Options{};
  if (arm.mass > 0) o.mass = static_cast<float>(arm.mass);
  o.cluster_size = parsed<int>(engine, "cluster_size");
  o.iterations = parsed<int>(engine, "iterations");
  o.outlier_share = parsed<float>(engine, "outlier_share");
  o.segment_tokens = parsed<int>(engine, "segment_tokens");
  o.shrinkage = parsed<float>(engine, "shrinkage");
  o.int8_centroids = parsed<int>(engine, "int8_centroids") != 0;
  o.seed = parsed<std::uint64_t>(engine, "seed");
  o.sink_tokens = parsed<int>(engine, "sink_tokens");
  o.recent_tokens = parsed<int>(engine, "recent_tokens");
  o.spread = parsed<int>(engine, "spread") != 0;
  o.joint = parsed<int>(engine, "joint") != 0;
  o.verify = parsed<int>(engine, "verify") != 0;
  o.tail_factor = parsed<int>(engine, "tail_factor") != 0;
  o.tail_clusters = parsed<int>(engine, "tail_clusters");
  o.promise = parsed<int>(engine, "promise") != 0;
  o.fit_head = parsed<float>(engine, "fit_head");
  o.fit_window = parsed<float>(engine, "fit_window");
  o.fit_first = parsed<float>(engine, "fit_first");
  o.fit_second = parsed<float>(engine, "fit_second");
  const std::string metric = engine.control().get("metric");
  o.metric = metric == "l2" ? Metric::l2 : (metric == "diagonal" ? Metric::diagonal : Metric::query);
  o.goal = std::string(engine.control().get("goal")) == "mass" ? Goal::mass : Goal::error;
  engine.set("preset", "tactic");
  engine.set("method", "stock");
  return o;
}

}  // namespace tactic::program
