// Cases of choosing on the device: what the double-precision reference of select/ thinks of every column, and the lists that the
// device leaves.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "select/cuda.h"
#include "select/loss.h"
#include "support/device_index.h"

namespace tactic::test {

struct SelectCase {
  LayerSpec spec{.kv = {.shape = {8, 2, 128, 128}, .k_type = DType::f32, .v_type = DType::f32, .tokens = 3000}};
  DeviceBatch::Format format{};
  std::vector<std::int64_t> tokens = {3000};  // a sequence each
  Options options{};
  float softcap = 0;
};

// What the reference thinks of one column, in units of what it costs.
struct Want {
  double loss = 0;       // over the price of its rows: > 1 attended
  double tail_loss = 0;  // over the price of its mean V
  std::vector<double> log_weight;
};

struct HeadWant {
  std::vector<Want> columns;
  std::vector<double> reference;  // [G] log-sum-exp
};

inline HeadWant reference_choice(LayerCase& layer, const Options& options, int head) {
  const Query query = layer.kv().query();
  const HeadTable& table = layer.index().tables[static_cast<std::size_t>(head)];
  const int group = query.shape.group();
  const auto stride = static_cast<std::size_t>(table.stride);
  const auto size = static_cast<std::size_t>(group) * stride;
  std::vector<float> logits(size), half(static_cast<std::size_t>(group) * table.parts.size()), mass(size), ripple(size);
  reference::score_centroids(query, head, table, 0, table.count, logits.data());
  reference::half_variances(query, head, table, half.data());
  const float* h = options.spread ? half.data() : nullptr;
  const float softcap = query.params.softcap;
  PartialStorage fixed(group, query.shape.v_head_dim);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < layer.kv().spec().tokens; ++t) {
    if (t < layer.index().first() || t >= layer.index().last()) ids.push_back(static_cast<std::int32_t>(t));
  }
  reference::attend_list(query, layer.kv().view(), head, {ids.data(), 0, static_cast<std::int64_t>(ids.size())}, fixed.get(),
                         nullptr, 0);
  std::vector<float> top(static_cast<std::size_t>(group));
  for (int g = 0; g < group; ++g) {
    top[static_cast<std::size_t>(g)] = fixed.get().maximum[g];
    for (int c = 0; c < table.count; ++c)
      top[static_cast<std::size_t>(g)] =
          std::max(top[static_cast<std::size_t>(g)], logits[static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c)]);
  }
  reference::estimate_masses(table, group, logits.data(), h, top.data(), mass.data(), softcap);
  reference::representation_ripple(table, group, logits.data(), options.tail_clusters > 0 ? h : nullptr, ripple.data(), softcap);
  HeadWant want;
  for (int g = 0; g < group; ++g) {
    double total = fixed.get().sum[g] * std::exp(static_cast<double>(fixed.get().maximum[g]) - top[static_cast<std::size_t>(g)]);
    for (int c = 0; c < table.count; ++c) total += mass[static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c)];
    want.reference.push_back(std::log(total) + top[static_cast<std::size_t>(g)]);
  }
  const double price = loss_per_row(options.mass);
  for (int c = 0; c < table.count; ++c) {
    Want column;
    const auto n = static_cast<double>(table.size[c]);
    for (int g = 0; g < group; ++g) {
      const std::size_t at = static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c);
      const double all = std::exp(want.reference[static_cast<std::size_t>(g)] - top[static_cast<std::size_t>(g)]);
      column.loss += std::pow(mass[at] / all, 2) * ripple[at] / (price * n);
      double variance = 0;
      if (h != nullptr)
        variance = 2.0 * h[static_cast<std::size_t>(g) * table.parts.size() + static_cast<std::size_t>(table.part_of[c])] *
                   table.spread[c];
      if (softcap > 0) variance *= std::pow(1 - std::pow(static_cast<double>(logits[at]) / softcap, 2), 2);
      const double weight = std::log(n) + static_cast<double>(logits[at]) + std::log(std::cosh(std::sqrt(variance)));
      column.log_weight.push_back(weight);
      column.tail_loss +=
          std::exp(2 * (weight - want.reference[static_cast<std::size_t>(g)])) / (price * kRepresentedRows * 0.25);
    }
    want.columns.push_back(column);
  }
  return want;
}

// The device's lists, on the host.
struct HostLists {
  HostLists(const DeviceLists& lists, int slots, int group) : pieces(lists.pieces), group_(group), lists_(lists) {
    const auto p = static_cast<std::size_t>(slots * lists.pieces);
    first = copy(lists.token_first, p), count = copy(lists.token_count, p), represented_count = copy(lists.represented_count, p);
    tokens = copy(lists.tokens, static_cast<std::size_t>(slots) * static_cast<std::size_t>(lists.token_stride));
    represented = copy(lists.represented, p * static_cast<std::size_t>(lists.represented_stride));
    log_weight = copy(lists.log_weight, p * static_cast<std::size_t>(lists.represented_stride * group));
    reference = copy(lists.reference, static_cast<std::size_t>(slots * group));
  }
  std::vector<std::int32_t> tokens_of(int slot) const {
    std::vector<std::int32_t> all;
    for (int p = 0; p < pieces; ++p) {
      const auto at = static_cast<std::size_t>(slot * pieces + p);
      for (int i = 0; i < count[at]; ++i)
        all.push_back(tokens[static_cast<std::size_t>(slot) * static_cast<std::size_t>(lists_.token_stride) +
                             static_cast<std::size_t>(first[at] + i)]);
    }
    return all;
  }
  std::map<int, std::vector<float>> represented_of(int slot) const {
    std::map<int, std::vector<float>> all;
    for (int p = 0; p < pieces; ++p) {
      const auto at = static_cast<std::size_t>(slot * pieces + p);
      for (int i = 0; i < represented_count[at]; ++i) {
        const std::size_t entry = at * static_cast<std::size_t>(lists_.represented_stride) + static_cast<std::size_t>(i);
        const auto begin = log_weight.begin() + static_cast<std::ptrdiff_t>(entry) * group_;
        EXPECT_TRUE(all.emplace(represented[entry], std::vector<float>(begin, begin + group_)).second) << "twice";
      }
    }
    return all;
  }

  int pieces;
  std::vector<std::int32_t> first, count, represented_count, tokens, represented;
  std::vector<float> log_weight, reference;

 private:
  template <class T>
  static std::vector<T> copy(const T* from, std::size_t size) {
    std::vector<T> to(size);
    cuda_ok(cudaMemcpy(to.data(), from, size * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
  int group_;
  DeviceLists lists_;
};

class Chosen {
 public:
  explicit Chosen(const SelectCase& c) : c_(c) {
    std::vector<const LayerIndex*> indexes;
    for (std::size_t s = 0; s < c.tokens.size(); ++s) {
      LayerSpec spec = c.spec;
      spec.kv.tokens = c.tokens[s], spec.kv.seed += 100 * s;
      layers.push_back(std::make_unique<LayerCase>(spec));
      layers.back()->kv().params().softcap = c.softcap;
      cases_.push_back(&layers.back()->kv());
    }
    batch = std::make_unique<DeviceBatch>(cases_, c.format);
    for (auto& layer : layers) {
      round_to_device(layer->index());
      indexes.push_back(&layer->index());
    }
    columns = std::make_unique<DeviceColumns>(indexes, c.spec.kv.shape);
  }
  HostLists run() {
    const DeviceQuery query = batch->query();
    const DeviceArray<std::byte> scratch(cuda::select_scratch_bytes(query, batch->kv(), columns->index(), c_.options), 0);
    const DeviceLists lists = cuda::select_lists(query, batch->kv(), columns->index(), c_.options, scratch.get());
    cuda::select(query, batch->kv(), columns->index(), c_.options, lists, batch->status(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    return HostLists(lists, static_cast<int>(layers.size()) * query.shape.kv_heads, query.shape.group());
  }

  std::vector<std::unique_ptr<LayerCase>> layers;
  std::unique_ptr<DeviceBatch> batch;
  std::unique_ptr<DeviceColumns> columns;

 private:
  SelectCase c_;
  std::vector<KvCase*> cases_;
};

}  // namespace tactic::test
