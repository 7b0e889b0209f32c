// A decode step on the device for batches of LayerCases: what select listed, and what attention over exactly that must give.
#pragma once

#include "attend/cuda.h"
#include "decode/cuda.h"
#include "select/cuda.h"
#include "support/device_index.h"

namespace tactic::test {

// What select left for one KV head of one sequence.
struct Listed {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> columns;           // represented by their mean V
  std::vector<std::vector<float>> log_weight;  // [columns][group]
};

inline Listed read_lists(const DeviceLists& l, const Shape& shape, int sequence, int head) {
  const auto slot = static_cast<std::size_t>(sequence * shape.kv_heads + head), pieces = static_cast<std::size_t>(l.pieces);
  const auto group = static_cast<std::size_t>(shape.group()), stride = static_cast<std::size_t>(l.represented_stride);
  const auto first = fetch(l.token_first + slot * pieces, pieces), count = fetch(l.token_count + slot * pieces, pieces);
  Listed result;
  for (std::size_t p = 0; p < pieces; ++p) {
    const auto tokens = fetch(l.tokens + slot * static_cast<std::size_t>(l.token_stride) + static_cast<std::size_t>(first[p]),
                              static_cast<std::size_t>(count[p]));
    result.tokens.insert(result.tokens.end(), tokens.begin(), tokens.end());
    if (stride == 0 || l.represented_count == nullptr) continue;
    const auto means = static_cast<std::size_t>(fetch(l.represented_count + slot * pieces + p, 1)[0]);
    const auto columns = fetch(l.represented + (slot * pieces + p) * stride, means);
    const auto weights = fetch(l.log_weight + (slot * pieces + p) * stride * group, means * group);
    for (std::size_t i = 0; i < means; ++i) {
      result.columns.push_back(columns[i]);
      result.log_weight.emplace_back(weights.begin() + static_cast<std::ptrdiff_t>(i * group),
                                     weights.begin() + static_cast<std::ptrdiff_t>((i + 1) * group));
    }
  }
  return result;
}

// Mean V of a column of the layer's index.
inline std::vector<float> mean_v(const LayerIndex& index, int head, int column) {
  for (const auto& segment : index.segments) {
    const HeadClusters& clusters = segment->heads[static_cast<std::size_t>(head)];
    if (column >= clusters.count) {
      column -= clusters.count;
      continue;
    }
    std::vector<float> mean;
    const auto dim = static_cast<std::size_t>(segment->v_head_dim), at = static_cast<std::size_t>(column);
    for (std::size_t i = 0; i < dim; ++i)
      mean.push_back(static_cast<float>(clusters.mean_v[at * dim + i]) * clusters.mean_v_scale[at]);
    return mean;
  }
  throw std::runtime_error("a represented column that no segment has: " + std::to_string(column));
}

// Attention of one query head over the always attended and the listed tokens and the represented clusters, in double.
struct Exact {
  std::vector<double> out;
  double lse = 0;
  double reached = 0;  // share of the true mass of all tokens that is attended
};
// tokens: of the sequence now; -1: all that the case has. The clustered ones are those of the layer's index.
inline Exact exact_attention(LayerCase& layer, int q_head, const Listed& list, const float* sink_logits = nullptr,
                             std::int64_t tokens = -1) {
  const Query query = layer.kv().query();
  const Shape& s = query.shape;
  const int head = q_head / s.group();
  const auto in_group = static_cast<std::size_t>(q_head % s.group());
  const std::int64_t n = tokens < 0 ? layer.kv().view().tokens : tokens;
  std::vector<float> logits(static_cast<std::size_t>(s.group()) * static_cast<std::size_t>(n));
  reference::score_list(query, layer.kv().view(), head, {nullptr, 0, n}, logits.data(), n);
  const float* mine = logits.data() + static_cast<std::int64_t>(in_group) * n;
  std::vector<char> attended(static_cast<std::size_t>(n), 0);
  for (std::int64_t t = 0; t < n; ++t)
    attended[static_cast<std::size_t>(t)] = t < layer.index().first() || t >= layer.index().last();
  for (const std::int32_t t : list.tokens) attended[static_cast<std::size_t>(t)] = 1;
  double top = sink_logits != nullptr ? static_cast<double>(sink_logits[q_head]) : -INFINITY;
  for (std::int64_t t = 0; t < n; ++t) top = std::max(top, static_cast<double>(mine[t]));
  for (const auto& w : list.log_weight) top = std::max(top, static_cast<double>(w[in_group]));
  Exact result;
  result.out.assign(static_cast<std::size_t>(s.v_head_dim), 0.0);
  const auto add = [&](double weight, const std::vector<float>& values) {
    for (std::size_t i = 0; i < result.out.size(); ++i) result.out[i] += weight * static_cast<double>(values[i]);
  };
  double sum = sink_logits != nullptr ? std::exp(sink_logits[q_head] - top) : 0, all = 0, kept = 0;
  for (std::int64_t t = 0; t < n; ++t) {
    const double w = std::exp(mine[t] - top);
    all += w;
    if (!attended[static_cast<std::size_t>(t)]) continue;
    kept += w;
    add(w, layer.kv().v(t, head));
  }
  sum += kept;
  for (std::size_t i = 0; i < list.columns.size(); ++i) {
    const double w = std::exp(list.log_weight[i][in_group] - top);
    sum += w;
    add(w, mean_v(layer.index(), head, list.columns[i]));
  }
  for (double& x : result.out) x /= sum;
  result.lse = top + std::log(sum);
  result.reached = kept / all;
  return result;
}

class DeviceStep {
 public:
  // The layers' keys and clusters are rounded to what the device holds first.
  DeviceStep(const std::vector<LayerCase*>& layers, const DeviceBatch::Format& format, const Options& options, int spare = 64)
      : layers_(layers), options_(options) {
    std::vector<KvCase*> cases;
    for (LayerCase* layer : layers) cases.push_back(&layer->kv());
    batch_ = std::make_unique<DeviceBatch>(cases, format);
    std::vector<const LayerIndex*> indexes;
    for (LayerCase* layer : layers) {
      layer->rebuild();
      round_to_device(layer->index());
      indexes.push_back(&layer->index());
    }
    columns_ = std::make_unique<DeviceColumns>(indexes, shape(), spare);
    const DeviceIndex& index = columns_->index();
    select_ = DeviceArray<std::byte>(cuda::select_scratch_bytes(batch_->query(), batch_->kv(), index, options), 0);
    attend_ = DeviceArray<std::byte>(cuda::attend_scratch_bytes(batch_->query(), batch_->kv(), lists()), 0);
    step_ = DeviceArray<std::byte>(cuda::decode_scratch_bytes(batch_->query(), batch_->kv(), &index, options), 0);
  }

  const Shape& shape() const { return batch_->shape(); }
  DeviceBatch& batch() { return *batch_; }
  const DeviceIndex& index() const { return columns_->index(); }
  DeviceColumns& columns() { return *columns_; }
  DeviceLists lists() const { return cuda::select_lists(batch_->query(), batch_->kv(), index(), options_, select_.get()); }

  void select(cudaStream_t stream = nullptr) {
    cuda::select(batch_->query(), batch_->kv(), index(), options_, lists(), batch_->status(), select_.get(), stream);
  }
  void attend(cudaStream_t stream = nullptr) {
    cuda::attend_lists(batch_->query(), batch_->kv(), index(), lists(), batch_->output(), batch_->status(), attend_.get(),
                       stream);
  }
  void step(cudaStream_t stream = nullptr, cuda::StepKernels kernels = cuda::StepKernels::automatic) {
    cuda::decode_step(batch_->query(), batch_->kv(), &index(), options_, batch_->output(), batch_->status(), step_.get(), stream,
                      kernels);
  }

  Listed listed(int sequence, int head) const { return read_lists(lists(), shape(), sequence, head); }
  Exact exact(int sequence, int q_head, const Listed& list, const float* sink_logits = nullptr, std::int64_t tokens = -1) const {
    return exact_attention(*layers_[static_cast<std::size_t>(sequence)], q_head, list, sink_logits, tokens);
  }

 private:
  std::vector<LayerCase*> layers_;
  Options options_;
  std::unique_ptr<DeviceBatch> batch_;
  std::unique_ptr<DeviceColumns> columns_;
  DeviceArray<std::byte> select_, attend_, step_;
};

}  // namespace tactic::test
