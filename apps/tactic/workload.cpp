// Keys to measure attention on: synthetic ones or a capture's, several layers in llama.cpp's layout.
#include "workload.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include "capture.h"
#include "interrupt.h"
#include "progress.h"

namespace tactic::program {
namespace {

// Takes a layer in, its K and V into pages of the wanted size.
void add_layer(Workload& work, SyntheticLayer&& layer, bool huge_pages) {
  const Shape& shape = work.shape;
  const std::size_t k_bytes = layer.k.size() * 2;
  const std::size_t v_bytes = layer.v.size() * 2;
  const bench::Pages& pages = work.pages.emplace_back(k_bytes + v_bytes, huge_pages);
  std::memcpy(pages.data(), layer.k.data(), k_bytes);
  std::memcpy(pages.data() + k_bytes, layer.v.data(), v_bytes);
  const auto rows = [&](const std::byte* data, int dim) {
    return Rows{.data = data,
                .type = DType::f16,
                .dim = dim,
                .token_stride = std::int64_t{2} * dim * shape.kv_heads,
                .head_stride = std::int64_t{2} * dim,
                .block_stride = 0};
  };
  work.kv.push_back({.k = rows(pages.data(), shape.head_dim),
                     .v = rows(pages.data() + k_bytes, shape.v_head_dim),
                     .kv_heads = shape.kv_heads,
                     .tokens = work.tokens});
  work.q.push_back(std::move(layer.q));
}

// Captured heads as llama.cpp keeps them: [token, kv_heads, dim].
void side_by_side(const Capture& capture, int layer, SyntheticLayer& into) {
  const CaptureInfo& info = capture.info();
  const KvView kv = capture.kv(layer, info.tokens());
  const auto copy = [&](const Rows& rows, std::vector<std::uint16_t>& out) {
    const auto dim = static_cast<std::size_t>(rows.dim);
    out.resize(static_cast<std::size_t>(info.tokens()) * static_cast<std::size_t>(info.shape.kv_heads) * dim);
    std::uint16_t* to = out.data();
    for (int token = 0; token < info.tokens(); ++token) {
      for (int head = 0; head < info.shape.kv_heads; ++head, to += dim) std::memcpy(to, row(kv, rows, token, head), dim * 2);
    }
  };
  copy(kv.k, into.k);
  copy(kv.v, into.v);
}

}  // namespace

Workload synthetic_workload(const WorkloadSpec& options, Team& team) {
  Workload work;
  work.shape = {
      .q_heads = options.q_heads, .kv_heads = options.kv_heads, .head_dim = options.head_dim, .v_head_dim = options.head_dim};
  work.params.scale = 1.0f / std::sqrt(static_cast<float>(options.head_dim));
  work.rotary.layout = Rotary::Layout::none;  // they don't turn
  work.tokens = options.context;
  work.queries = kMetricQueries + kTimedQueries;
  work.prompt_queries = kMetricQueries;
  Progress progress("make keys", options.layers, "layers");
  for (int layer = 0; layer < options.layers; ++layer) {
    SyntheticSpec spec{.shape = work.shape,
                       .tokens = options.context,
                       .queries = work.queries,
                       .seed = options.seed + static_cast<std::uint64_t>(layer),
                       .statistics = {}};
    SyntheticLayer made = make_layer(spec, team);
    if (layer == 0) work.keys = "synthetic: " + describe(spec, made);
    add_layer(work, std::move(made), options.huge_pages);
    progress.update(layer + 1);
    if (interrupted()) throw Interrupted{};
  }
  progress.finish();
  return work;
}

Workload captured_workload(const std::string& path, bool huge_pages) {
  Workload work;
  const Capture capture = Capture::read(path);
  const CaptureInfo& info = capture.info();
  work.shape = info.shape;
  work.params = info.params;
  work.rotary = info.rotary;
  work.tokens = info.tokens();
  work.queries = info.window + info.steps;
  work.prompt_queries = info.window;
  work.keys = "captured: " + info.model;
  const auto row = static_cast<std::size_t>(info.shape.q_heads) * static_cast<std::size_t>(info.shape.head_dim);
  for (int layer = 0; layer < info.layers; ++layer) {
    SyntheticLayer made;
    side_by_side(capture, layer, made);
    auto& q = made.q;
    for (int i = 0; i < info.window; ++i) {
      const float* from = capture.prompt_q(layer) + i * capture.token_stride();
      q.insert(q.end(), from, from + row);
    }
    for (int step = 0; step < info.steps; ++step) {
      const auto from = capture.q(step, layer);
      q.insert(q.end(), from.begin(), from.end());
    }
    add_layer(work, std::move(made), huge_pages);
    if (interrupted()) throw Interrupted{};
  }
  return work;
}

}  // namespace tactic::program
