// A clustering on the device for tests: keys around a few centres, a metric, an index, and the result as the host's structures.
#pragma once

#include "cluster/cuda.h"
#include "cluster/cuda_metric.h"
#include "cluster/segment.h"
#include "cluster/support.h"
#include "support/device_index.h"

namespace tactic::test {

struct ClusterSpec {
  const char* name;
  int tokens;
  Shape shape{4, 2, 64, 64};
  int cluster_size = 32;
  int iterations = 3;
  DeviceType type = DeviceType::bf16;
  Metric metric = Metric::query;
  Layout layout = Layout::side_by_side;
  bool int8 = true;
  int distinct = 0;  // > 0: keys repeat after so many tokens
  float outlier_share = 0;
  int outlier_spacing = 0;  // > 0: one key and small noise, but for each so manieth token, which lies far away
};
inline void PrintTo(const ClusterSpec& spec, std::ostream* out) { *out << spec.name; }

constexpr int kFirst = 4;  // tokens before the segment
constexpr int kBehind = 9;

inline DType host_type(DeviceType type) {
  return type == DeviceType::f16 ? DType::f16 : type == DeviceType::bf16 ? DType::bf16 : DType::f32;
}

// A sequence on the device, the second of two, its metric, an index, and what cluster() needs.
class ClusterCase {
 public:
  explicit ClusterCase(const ClusterSpec& spec) : spec_(spec) {
    KvSpec kv;
    kv.shape = spec.shape, kv.tokens = spec.tokens + kFirst + kBehind, kv.layout = Layout::side_by_side, kv.seed = 3;
    kv.k_type = kv.v_type = host_type(spec.type);
    case_ = std::make_unique<KvCase>(kv);
    shape_keys();
    other_ = std::make_unique<KvCase>([&] {
      kv.tokens = 5;
      return kv;
    }());
    DeviceBatch::Format format;
    format.layout = spec.layout, format.type = spec.type;
    if (spec.type == DeviceType::fp8_e4m3) format.k_scale = 0.5f, format.v_scale = 0.25f;
    batch_ = std::make_unique<DeviceBatch>(std::vector<KvCase*>{other_.get(), case_.get()}, format);
    metrics_ = random_metrics(spec.metric, spec.shape.head_dim, spec.shape.kv_heads);
    options_.cluster_size = spec.cluster_size, options_.iterations = spec.iterations, options_.int8_centroids = spec.int8;
    options_.seed = 11, options_.outlier_share = spec.outlier_share;
    make_index();
    upload_factor();
    scratch_ = DeviceArray<std::byte>(cuda::cluster_scratch_bytes(batch_->kv(), index_, spec.tokens, options_));
  }

  cuda::ClusterTask task() const {
    cuda::ClusterTask task;
    task.sequence = 1, task.first = kFirst, task.last = kFirst + spec_.tokens;
    task.factor = spec_.metric == Metric::l2 ? nullptr : factor_.get();
    return task;
  }
  cuda::ClusterJob job() const { return {batch_->kv(), index_, task(), batch_->status()}; }
  void run() { run(task()); }
  void run(const cuda::ClusterTask& task) {
    cuda::cluster(batch_->kv(), index_, task, options_, batch_->status(), scratch_.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
  }

  const ClusterSpec& spec() const { return spec_; }
  KvCase& kv() { return *case_; }
  DeviceBatch& batch() { return *batch_; }
  const DeviceIndex& index() const { return index_; }
  const ClusterOptions& options() const { return options_; }
  const std::vector<MetricSpace>& metrics() const { return metrics_; }
  void* scratch() const { return scratch_.get(); }
  int slot(int head) const { return spec_.shape.kv_heads + head; }
  int count() const { return cluster_count(spec_.tokens, spec_.cluster_size); }

  // The slot of a head as the host's structure; covariance over mean spread in `covariance`.
  HeadClusters clusters(int head) const {
    const auto s = static_cast<std::size_t>(slot(head)), dim = static_cast<std::size_t>(spec_.shape.head_dim);
    HeadClusters out = fetch_columns(index_, spec_.shape, s, 0, 0, fetch(index_.clusters + s, 1)[0]);
    const auto shape = fetch(index_.shape + s * static_cast<std::size_t>(index_.part_capacity) * dim * dim, dim * dim);
    for (std::size_t i = 0; i < shape.size(); ++i) out.covariance[i] = bf16_to_float(shape[i]);
    return out;
  }
  // Everything a clustering writes, for comparison.
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all;
    const auto add = [&](const auto* from, std::size_t size) {
      const auto* data = reinterpret_cast<const std::byte*>(from);
      const std::vector<std::byte> part = fetch(data, size * sizeof(*from));
      all.insert(all.end(), part.begin(), part.end());
    };
    for (int head = 0; head < spec_.shape.kv_heads; ++head) {
      const auto s = static_cast<std::size_t>(slot(head)), capacity = static_cast<std::size_t>(index_.capacity);
      const auto columns = static_cast<std::size_t>(count()), dim = static_cast<std::size_t>(spec_.shape.head_dim);
      add(index_.tokens + s * static_cast<std::size_t>(index_.token_capacity), static_cast<std::size_t>(spec_.tokens));
      add(index_.spread + s * capacity, columns);
      add(index_.shape + s * static_cast<std::size_t>(index_.part_capacity) * dim * dim, dim * dim);
      add(index_.mean_v + s * capacity * static_cast<std::size_t>(spec_.shape.v_head_dim),
          columns * static_cast<std::size_t>(spec_.shape.v_head_dim));
    }
    return all;
  }

 private:
  // Keys around a few centres, with a large part that all share; optionally repeating, or one key with outliers.
  void shape_keys() {
    const auto dim = static_cast<std::size_t>(spec_.shape.head_dim);
    const std::vector<float> shared = case_->normal(dim, 3), centres = case_->normal(20 * dim, 1.5f);
    for (int t = 0; t < spec_.tokens + kFirst + kBehind; ++t) {
      for (int h = 0; h < spec_.shape.kv_heads; ++h) {
        if (spec_.distinct > 0 && t >= spec_.distinct) {
          case_->set_k(t, h, case_->k(t % spec_.distinct, h));
          continue;
        }
        std::vector<float> key = case_->k(t, h);
        if (spec_.outlier_spacing > 0) {
          for (float& x : key) x = 1 + 0.05f * x;
          if (t % spec_.outlier_spacing == 0) key[5] += 0.7f;
          case_->set_k(t, h, key);
          continue;
        }
        const std::size_t centre = case_->random()() % 20;
        for (std::size_t i = 0; i < dim; ++i) key[i] += shared[i] + centres[centre * dim + i];
        case_->set_k(t, h, key);
      }
    }
  }

  void make_index() {
    const Shape& shape = spec_.shape;
    index_.capacity = (count() + 63) / 64 * 64, index_.token_capacity = (spec_.tokens + 63) / 64 * 64, index_.part_capacity = 2;
    index_.int8_centroids = spec_.int8;
    const std::size_t slots = 2 * static_cast<std::size_t>(shape.kv_heads);
    const std::size_t columns = slots * static_cast<std::size_t>(index_.capacity);
    const auto dim = static_cast<std::size_t>(shape.head_dim);
    ints_.reserve(8);
    const auto ints = [&](std::size_t size, int fill) { return ints_.emplace_back(size, fill).get(); };
    const auto floats = [&](std::size_t size) { return floats_.emplace_back(size).get(); };
    floats_.reserve(4);
    index_.clusters = ints(slots, 0), index_.range = ints(4, 0), index_.parts = ints(2, 0);
    index_.begin = ints(columns + slots * 64, -1);
    index_.tokens = ints(slots * static_cast<std::size_t>(index_.token_capacity), -1);
    index_.part_begin = ints(slots * 3, -1);
    index_.spread = floats(columns), index_.mean_v_scale = floats(columns);
    centroid8_ = DeviceArray<std::int8_t>(columns * dim),
    mean_v_ = DeviceArray<std::int8_t>(columns * static_cast<std::size_t>(shape.v_head_dim));
    words_ = DeviceArray<std::uint16_t>(columns * dim), shape_ = DeviceArray<std::uint16_t>(slots * 2 * dim * dim);
    if (spec_.int8) {
      index_.centroid8 = centroid8_.get(), index_.centroid_scale = floats(columns);
    } else {
      index_.centroid16 = words_.get();
    }
    index_.mean_v = mean_v_.get(), index_.shape = shape_.get();
  }

  void upload_factor() {
    const auto dim = static_cast<std::size_t>(spec_.shape.head_dim);
    std::vector<float> all;
    for (const MetricSpace& metric : metrics_) {
      std::vector<float> factor(dim * dim, 0.0f);
      if (metric.kind == Metric::query) factor = metric.factor;
      for (std::size_t i = 0; i < dim && metric.kind == Metric::diagonal; ++i) factor[i * dim + i] = metric.factor[i];
      all.insert(all.end(), factor.begin(), factor.end());
    }
    factor_ = DeviceArray<float>(all);
  }

  ClusterSpec spec_;
  std::unique_ptr<KvCase> case_, other_;
  std::unique_ptr<DeviceBatch> batch_;
  std::vector<MetricSpace> metrics_;
  ClusterOptions options_;
  DeviceIndex index_;
  std::vector<DeviceArray<std::int32_t>> ints_;
  std::vector<DeviceArray<float>> floats_;
  DeviceArray<std::int8_t> centroid8_, mean_v_;
  DeviceArray<std::uint16_t> words_, shape_;
  DeviceArray<float> factor_;
  DeviceArray<std::byte> scratch_;
};

inline void expect_partition(const ClusterCase& c, const HeadClusters& clusters) {
  Segment segment;
  segment.first = kFirst, segment.last = kFirst + c.spec().tokens;
  segment.heads.push_back(clusters);
  test::expect_partition(segment);
}

}  // namespace tactic::test
