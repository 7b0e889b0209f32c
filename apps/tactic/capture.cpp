// Real queries, keys and values of a model on a text, as a safetensors file.
#include "capture.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/options.h"

namespace tactic::program {
namespace {

constexpr const char* kFormat = "tactic-capture-1";

std::string join(std::span<const float> values) { return fmt::format("{:.9g}", fmt::join(values, " ")); }

Rotary::Layout layout_of(const std::string& name) {
  if (name == "none") return Rotary::Layout::none;
  if (name == "interleaved") return Rotary::Layout::interleaved;
  if (name == "halves") return Rotary::Layout::halves;
  return Rotary::Layout::unknown;
}

const char* name_of(Rotary::Layout layout) {
  switch (layout) {
    case Rotary::Layout::none:
      return "none";
    case Rotary::Layout::interleaved:
      return "interleaved";
    case Rotary::Layout::halves:
      return "halves";
    case Rotary::Layout::unknown:
      break;
  }
  return "unknown";
}

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  throw Error(Status::corrupt, fmt::format("capture {} cannot be used ({}): make it with tactic capture", path, what));
}

std::vector<float> numbers(const std::string& text) {
  std::vector<float> values;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at != end) {
    float value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc()) break;
    values.push_back(value);
    at = next;
    while (at != end && *at == ' ') ++at;
  }
  return values;
}

template <typename T>
std::span<const T> tensor(const Tensors& tensors, const std::string& path, const char* name, const char* type, std::size_t rank,
                          std::vector<std::int64_t>* shape) {
  const Tensor* found = tensors.find(name);
  if (found == nullptr) damaged(path, fmt::format("it has no tensor {}", name));
  if (found->type != type || found->shape.size() != rank)
    damaged(path, fmt::format("its tensor {} is not {} of rank {}", name, type, rank));
  *shape = found->shape;
  return values_of<T>(*found);
}

Tensor tensor_from(const char* name, const char* type, std::vector<std::int64_t> shape, std::span<const std::byte> data) {
  return {.name = name, .type = type, .shape = std::move(shape), .data = data};
}

}  // namespace

std::span<const float> Capture::q(int step, int layer) const {
  return q_.subspan(static_cast<std::size_t>(step * token_stride() + layer * row()), static_cast<std::size_t>(row()));
}

const float* Capture::prompt_q(int layer) const { return prompt_q_.data() + layer * row(); }

KvView Capture::kv(int layer, std::int64_t tokens) const {
  const Shape& shape = info_.shape;
  const auto view = [&](std::span<const std::uint16_t> values, int dim) {
    const std::int64_t head = std::int64_t{info_.tokens()} * dim;
    const auto bytes = std::as_bytes(values.subspan(static_cast<std::size_t>(layer * shape.kv_heads * head)));
    return Rows{.data = bytes.data(), .type = DType::f16, .dim = dim, .token_stride = 2 * dim, .head_stride = 2 * head};
  };
  return {.k = view(k_, shape.head_dim), .v = view(v_, shape.v_head_dim), .kv_heads = shape.kv_heads, .tokens = tokens};
}

void Capture::write(const std::string& path) const {
  const auto [layers, shape] = std::pair<std::int64_t, Shape>(info_.layers, info_.shape);
  const std::int64_t n = info_.tokens();
  Tensors out;
  out.metadata = {{"format", kFormat},
                  {"model", info_.model},
                  {"prompt_tokens", std::to_string(info_.prompt_tokens)},
                  {"scale", fmt::format("{:.9g}", info_.params.scale)},
                  {"softcap", fmt::format("{:.9g}", info_.params.softcap)},
                  {"rotary_layout", name_of(info_.rotary.layout)},
                  {"rotary_frequency", join(info_.rotary.frequency)}};
  out.tensors.push_back(tensor_from("q", "F32", {info_.steps, layers, shape.q_heads, shape.head_dim}, std::as_bytes(q_)));
  out.tensors.push_back(
      tensor_from("prompt_q", "F32", {info_.window, layers, shape.q_heads, shape.head_dim}, std::as_bytes(prompt_q_)));
  out.tensors.push_back(tensor_from("k", "F16", {layers, shape.kv_heads, n, shape.head_dim}, std::as_bytes(k_)));
  out.tensors.push_back(tensor_from("v", "F16", {layers, shape.kv_heads, n, shape.v_head_dim}, std::as_bytes(v_)));
  out.tensors.push_back(tensor_from("tokens", "I32", {n}, std::as_bytes(tokens_)));
  write_safetensors(path, out);
}

Capture Capture::read(const std::string& path) {
  Capture capture;
  const MappedFile& file = capture.file_.emplace_back(path);
  Tensors tensors;
  try {
    tensors = parse_safetensors(file.bytes());
  } catch (const Error& error) {
    damaged(path, error.what());
  }
  if (tensors.metadata["format"] != kFormat) damaged(path, "it is no capture of this version");
  std::vector<std::int64_t> q, prompt_q, k, v, ids;
  capture.q_ = tensor<float>(tensors, path, "q", "F32", 4, &q);
  capture.prompt_q_ = tensor<float>(tensors, path, "prompt_q", "F32", 4, &prompt_q);
  capture.k_ = tensor<std::uint16_t>(tensors, path, "k", "F16", 4, &k);
  capture.v_ = tensor<std::uint16_t>(tensors, path, "v", "F16", 4, &v);
  capture.tokens_ = tensor<Token>(tensors, path, "tokens", "I32", 1, &ids);
  const std::int64_t n = ids[0];
  const bool agree = prompt_q[1] == q[1] && prompt_q[2] == q[2] && prompt_q[3] == q[3] && k[0] == q[1] && v[0] == q[1] &&
                     v[1] == k[1] && k[2] == n && v[2] == n && k[3] == q[3] && n <= (1 << 26) && n > q[0] && prompt_q[0] >= 1 &&
                     prompt_q[0] <= n - q[0] && q[0] >= 1 && q[1] >= 1 && q[1] <= 1 << 16;
  if (!agree || k[1] < 1 || q[2] > (1 << 16) || v[3] > kMaxHeadDim) damaged(path, "its tensors do not agree in their shapes");
  CaptureInfo& info = capture.info_;
  info.model = tensors.metadata["model"];
  info.layers = static_cast<int>(q[1]);
  info.shape = {.q_heads = static_cast<int>(q[2]),
                .kv_heads = static_cast<int>(k[1]),
                .head_dim = static_cast<int>(k[3]),
                .v_head_dim = static_cast<int>(v[3])};
  try {
    validate(info.shape);
  } catch (const Error& error) {
    damaged(path, error.what());
  }
  info.steps = static_cast<int>(q[0]);
  info.window = static_cast<int>(prompt_q[0]);
  info.prompt_tokens = static_cast<int>(n - q[0]);
  const auto scale = numbers(tensors.metadata["scale"]);
  const auto softcap = numbers(tensors.metadata["softcap"]);
  info.params.scale = scale.empty() ? 0 : scale[0];
  info.params.softcap = softcap.empty() ? 0 : softcap[0];
  if (!(std::isfinite(info.params.scale) && info.params.scale > 0) ||
      !(std::isfinite(info.params.softcap) && info.params.softcap >= 0)) {
    damaged(path, "its scale or softcap is missing or impossible");
  }
  info.rotary.layout = layout_of(tensors.metadata["rotary_layout"]);
  info.rotary.frequency = numbers(tensors.metadata["rotary_frequency"]);
  if (info.rotary.frequency.size() > static_cast<std::size_t>(info.shape.head_dim / 2))
    damaged(path, "it has too many rotary frequencies");
  return capture;
}

}  // namespace tactic::program
