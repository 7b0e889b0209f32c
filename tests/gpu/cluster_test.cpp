// Clustering on the device: what a segment promises, against double precision sums over the device's own partition and against
// the CPU's objective from the same random start.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <tuple>

#include "cluster/cuda.h"
#include "cluster/cuda_metric.h"
#include "cluster/segment.h"
#include "cluster/support.h"
#include "support/device.h"

namespace tactic::test {
namespace {

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
};
void PrintTo(const ClusterSpec& spec, std::ostream* out) { *out << spec.name; }

constexpr int kFirst = 4;  // tokens before the segment
constexpr int kBehind = 9;

DType host_type(DeviceType type) {
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
    options_.seed = 11;
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
    const auto s = static_cast<std::size_t>(slot(head));
    const auto capacity = static_cast<std::size_t>(index_.capacity);
    const auto dim = static_cast<std::size_t>(spec_.shape.head_dim), v_dim = static_cast<std::size_t>(spec_.shape.v_head_dim);
    HeadClusters out;
    out.count = fetch(index_.clusters + s, 1)[0];
    const auto count = static_cast<std::size_t>(out.count);
    out.begin.assign(fetch(index_.begin + s * (capacity + 64), count + 1));
    out.tokens.assign(
        fetch(index_.tokens + s * static_cast<std::size_t>(index_.token_capacity), static_cast<std::size_t>(out.begin[count])));
    if (index_.int8_centroids) {
      out.centroid8.assign(fetch(index_.centroid8 + s * capacity * dim, count * dim));
      out.centroid_scale.assign(fetch(index_.centroid_scale + s * capacity, count));
    } else {
      const auto centroids = fetch(index_.centroid16 + s * capacity * dim, count * dim);
      out.centroid16.resize(centroids.size());
      for (std::size_t i = 0; i < centroids.size(); ++i) out.centroid16[i] = float_to_half(bf16_to_float(centroids[i]));
    }
    out.spread.assign(fetch(index_.spread + s * capacity, count));
    out.mean_v.assign(fetch(index_.mean_v + s * capacity * v_dim, count * v_dim));
    out.mean_v_scale.assign(fetch(index_.mean_v_scale + s * capacity, count));
    out.covariance.resize(dim * dim);
    const auto shape = fetch(index_.shape + s * static_cast<std::size_t>(index_.part_capacity) * dim * dim, dim * dim);
    for (std::size_t i = 0; i < shape.size(); ++i) out.covariance[i] = bf16_to_float(shape[i]);
    return out;
  }
  template <class T>
  static std::vector<T> fetch(const T* from, std::size_t size) {
    std::vector<T> values(size);
    cuda_ok(cudaMemcpy(values.data(), from, size * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
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
  // Keys around a few centres, with a large part that all share; optionally repeating.
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

// ---- conformance -------------------------------------------------------------------------------------------------------

class GpuCluster : public testing::TestWithParam<std::tuple<ClusterSpec, bool>> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no usable GPU";
    cuda::force_common_clustering(std::get<1>(GetParam()));
  }
  void TearDown() override {
    if (has_gpu()) cuda::force_common_clustering(false);
  }
};

// Means over the device's own partition, in double: of k, of v, of y; scatter of y.
struct HeadMeans {
  std::vector<std::vector<double>> k, v;
  std::vector<double> scatter;  // sum |y - mean y|^2
  double total = 0;             // sum |y - mean of all y|^2
};
HeadMeans means_of(ClusterCase& c, int head, const HeadClusters& clusters) {
  const auto dim = static_cast<std::size_t>(c.spec().shape.head_dim), v_dim = static_cast<std::size_t>(c.spec().shape.v_head_dim);
  HeadMeans out;
  std::vector<std::vector<double>> y(static_cast<std::size_t>(c.spec().tokens));
  std::vector<double> mean(dim, 0.0);
  for (std::size_t t = 0; t < y.size(); ++t) {
    y[t] = to_space(c.metrics()[static_cast<std::size_t>(head)], c.kv().k(kFirst + static_cast<std::int64_t>(t), head));
    for (std::size_t i = 0; i < dim; ++i) mean[i] += y[t][i] / static_cast<double>(y.size());
  }
  for (const auto& row : y) {
    for (std::size_t i = 0; i < dim; ++i) out.total += (row[i] - mean[i]) * (row[i] - mean[i]);
  }
  for (int n = 0; n < clusters.count; ++n) {
    std::vector<double> k(dim, 0.0), v(v_dim, 0.0), my(dim, 0.0);
    const double size = clusters.size(n);
    const auto tokens =
        clusters.tokens.span().subspan(static_cast<std::size_t>(clusters.begin[n]), static_cast<std::size_t>(size));
    for (const std::int32_t token : tokens) {
      const std::vector<float> key = c.kv().k(token, head), value = c.kv().v(token, head);
      for (std::size_t i = 0; i < dim; ++i) k[i] += key[i] / size, my[i] += y[static_cast<std::size_t>(token - kFirst)][i] / size;
      for (std::size_t i = 0; i < v_dim; ++i) v[i] += value[i] / size;
    }
    double scatter = 0;
    for (const std::int32_t token : tokens) {
      for (std::size_t i = 0; i < dim; ++i) scatter += std::pow(y[static_cast<std::size_t>(token - kFirst)][i] - my[i], 2);
    }
    out.k.push_back(k), out.v.push_back(v), out.scatter.push_back(scatter);
  }
  return out;
}

void expect_partition(const ClusterCase& c, const HeadClusters& clusters) {
  Segment segment;
  segment.first = kFirst, segment.last = kFirst + c.spec().tokens;
  segment.heads.push_back(clusters);
  test::expect_partition(segment);
}

TEST_P(GpuCluster, KeepsItsPromises) {
  ClusterCase c(std::get<0>(GetParam()));
  c.run();
  ASSERT_EQ(c.batch().statuses(), (std::vector<std::uint32_t>{0, 0}));
  const auto range = ClusterCase::fetch(c.index().range, 4);
  EXPECT_EQ(range, (std::vector<std::int32_t>{0, 0, kFirst, kFirst + c.spec().tokens}));
  EXPECT_EQ(ClusterCase::fetch(c.index().parts, 2), (std::vector<std::int32_t>{0, 1}));
  for (int head = 0; head < c.spec().shape.kv_heads; ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    const HeadClusters clusters = c.clusters(head);
    ASSERT_EQ(clusters.count, c.count());
    expect_partition(c, clusters);
    if (HasFatalFailure()) return;
    const HeadMeans means = means_of(c, head, clusters);
    for (int n = 0; n < clusters.count; ++n) {
      SCOPED_TRACE("cluster " + std::to_string(n));
      const auto at = static_cast<std::size_t>(n);
      const std::vector<float> got = centroid(clusters, n, c.spec().shape.head_dim);
      double largest = 0;
      for (const double x : means.k[at]) largest = std::max(largest, std::abs(x));
      // int8: half a step of largest / 127; bf16: half a unit in the last of 8 places; f32 sums on top
      const double tolerance = largest * (c.spec().int8 ? 1 / 254.0 : 1 / 256.0) * 1.01;
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], means.k[at][i], tolerance);
      largest = 0;
      for (const double x : means.v[at]) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < means.v[at].size(); ++i) {
        EXPECT_NEAR(clusters.mean_v[at * means.v[at].size() + i] * static_cast<double>(clusters.mean_v_scale[at]), means.v[at][i],
                    largest / 254 * 1.01);
      }
      // y is held in f16 relative to a mean of keys: 2^-11 an element, independent, of both factors of a square
      const double expected = means.scatter[at] / clusters.size(n);
      EXPECT_NEAR(clusters.spread[at], expected, 5e-3 * expected + 1e-5 * means.total / c.spec().tokens);
    }
  }
}

TEST_P(GpuCluster, IsAsGoodAsTheCpuFromTheSameStart) {
  ClusterCase c(std::get<0>(GetParam()));
  if (c.spec().type == DeviceType::fp8_e4m3) GTEST_SKIP() << "the CPU has no fp8";
  c.run();
  auto team = make_serial_team();
  const auto segment = build_segment(*team, c.kv().view(), kFirst, kFirst + c.spec().tokens, c.metrics(), c.options());
  double ours = 0, theirs = 0, total = 0;
  for (int head = 0; head < c.spec().shape.kv_heads; ++head) {
    const HeadMeans means = means_of(c, head, c.clusters(head));
    ours += std::accumulate(means.scatter.begin(), means.scatter.end(), 0.0);
    theirs += static_cast<double>(segment->heads[static_cast<std::size_t>(head)].mean_spread) * c.spec().tokens;
    total += means.total;
  }
  EXPECT_NEAR(ours, theirs, 5e-3 * theirs + 1e-6 * total);
}

TEST_P(GpuCluster, IsDeterministic) {
  ClusterCase c(std::get<0>(GetParam()));
  c.run();
  const auto first = c.bytes();
  c.run();
  EXPECT_EQ(c.bytes(), first);
}

TEST_P(GpuCluster, ShapeIsThePooledCovariance) {
  ClusterCase c(std::get<0>(GetParam()));
  if (c.spec().tokens > 1100) GTEST_SKIP() << "too slow in double";
  c.run();
  const auto dim = static_cast<std::size_t>(c.spec().shape.head_dim);
  for (int head = 0; head < c.spec().shape.kv_heads; ++head) {
    const HeadClusters clusters = c.clusters(head);
    const HeadMeans means = means_of(c, head, clusters);
    const double spread = std::accumulate(means.scatter.begin(), means.scatter.end(), 0.0);
    if (spread <= 1e-4 * means.total) continue;  // all on their centroids: nothing to compare
    std::vector<double> sum(dim * dim, 0.0);
    for (int n = 0; n < clusters.count; ++n) {
      for (int i = clusters.begin[n]; i < clusters.begin[n + 1]; ++i) {
        const std::vector<float> key = c.kv().k(clusters.tokens[static_cast<std::size_t>(i)], head);
        for (std::size_t a = 0; a < dim; ++a) {
          for (std::size_t b = 0; b < dim; ++b) {
            sum[a * dim + b] +=
                (key[a] - means.k[static_cast<std::size_t>(n)][a]) * (key[b] - means.k[static_cast<std::size_t>(n)][b]);
          }
        }
      }
    }
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      error += std::pow(sum[i] / spread - clusters.covariance[i], 2);
      norm += std::pow(sum[i] / spread, 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 6e-3) << "head " << head;  // bf16 rounds by up to 2^-9, the spread errs by 5e-3 at most
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GpuCluster,
    testing::Combine(
        testing::Values(
            ClusterSpec{"quick", 300}, ClusterSpec{"d80", 1000, {2, 1, 80, 80}},
            ClusterSpec{"d96_l2", 1000, {2, 1, 96, 96}, 16, 3, DeviceType::bf16, Metric::l2},
            ClusterSpec{"d128_blocks", 1100, {8, 2, 128, 128}, 32, 3, DeviceType::bf16, Metric::query, Layout::blocks},
            ClusterSpec{
                "d256_bf16_centroids", 700, {2, 1, 256, 256}, 32, 3, DeviceType::bf16, Metric::query, Layout::padded, false},
            ClusterSpec{"f16_head_major", 5000, {2, 2, 64, 64}, 16, 3, DeviceType::f16, Metric::diagonal, Layout::head_major},
            ClusterSpec{"f32_ten_iterations", 2100, {2, 2, 128, 64}, 16, 10, DeviceType::f32},
            ClusterSpec{"fp8_blocks", 1000, {2, 2, 64, 64}, 16, 3, DeviceType::fp8_e4m3, Metric::query, Layout::blocks},
            ClusterSpec{"one_token", 1}, ClusterSpec{"five_tokens", 5}, ClusterSpec{"odd", 257, {2, 1, 64, 80}, 2},
            ClusterSpec{"one_cluster", 3000, {2, 1, 64, 64}, 4096},
            ClusterSpec{
                "repeated_keys", 900, {2, 1, 64, 64}, 8, 3, DeviceType::bf16, Metric::query, Layout::side_by_side, true, 37}),
        testing::Bool()),
    [](const auto& test) { return std::string(std::get<0>(test.param).name) + (std::get<1>(test.param) ? "_common" : ""); });

// ---- faults ------------------------------------------------------------------------------------------------------------

class GpuClusterFaults : public OnDevice {};

TEST_F(GpuClusterFaults, NaNInKIsNamedAndCommitsNothing) {
  ClusterCase c(ClusterSpec{"nan", 600});
  const DeviceRows& k = c.batch().kv().k;
  const std::uint16_t nan = 0x7fc0;
  cuda_ok(cudaMemcpy(const_cast<std::byte*>(k.data) + k.sequence_stride + 123 * k.token_stride + k.head_stride + 6, &nan, 2,
                     cudaMemcpyHostToDevice));
  c.run();
  EXPECT_EQ(c.batch().statuses(), (std::vector<std::uint32_t>{0, device_status::non_finite}));
  EXPECT_EQ(ClusterCase::fetch(c.index().clusters, 4), (std::vector<std::int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(ClusterCase::fetch(c.index().range, 4), (std::vector<std::int32_t>{0, 0, 0, 0}));
  try {
    cuda::throw_cluster_fault(c.job(), c.options(), c.scratch(), nullptr);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::non_finite);
    EXPECT_STREQ(error.what(), "K of token 123, KV head 1 holds NaN or infinity");
  }
}

TEST_F(GpuClusterFaults, InfinityInVIsNamed) {
  ClusterCase c(ClusterSpec{"inf", 600});
  const DeviceRows& v = c.batch().kv().v;
  const std::uint16_t infinity = 0x7f80;
  cuda_ok(cudaMemcpy(const_cast<std::byte*>(v.data) + v.sequence_stride + 300 * v.token_stride, &infinity, 2,
                     cudaMemcpyHostToDevice));
  c.run();
  EXPECT_EQ(c.batch().statuses()[1], device_status::non_finite);
  try {
    cuda::throw_cluster_fault(c.job(), c.options(), c.scratch(), nullptr);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "V of token 300, KV head 0 holds NaN or infinity");
  }
}

TEST_F(GpuClusterFaults, BlockOutsideTheCacheIsReported) {
  ClusterCase c(ClusterSpec{"block", 600, {4, 2, 64, 64}, 32, 3, DeviceType::bf16, Metric::query, Layout::blocks});
  c.batch().kv().block_count = 3;  // most ids of the table are larger
  c.run();
  EXPECT_EQ(c.batch().statuses()[1] & device_status::bad_block, device_status::bad_block);
  EXPECT_EQ(ClusterCase::fetch(c.index().clusters, 4)[2], 0);
}

TEST_F(GpuClusterFaults, AppendBehindAGapOrWithoutRoomChangesNothing) {
  ClusterCase c(ClusterSpec{"append", 640});
  cuda::ClusterTask task = c.task();
  task.last = kFirst + 320;
  c.run(task);
  const auto before = c.clusters(0).tokens;
  task.append = true, task.first = kFirst + 321, task.last = kFirst + 640;
  c.run(task);
  EXPECT_EQ(c.batch().statuses()[1], device_status::bad_index);
  task.first = kFirst + 320, task.last = kFirst + 640;
  c.run(task);
  c.run(task);  // goes on from 320 once only
  EXPECT_EQ(ClusterCase::fetch(c.index().range, 4)[3], kFirst + 640);
  const HeadClusters all = c.clusters(0);
  EXPECT_EQ(all.count, 20);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), all.tokens.begin()));
  expect_partition(c, all);
}

TEST_F(GpuClusterFaults, BadTasksAreRefused) {
  ClusterCase c(ClusterSpec{"refused", 100});
  cuda::ClusterTask task = c.task();
  task.sequence = 2;
  EXPECT_THROW(c.run(task), Error);
  task = c.task();
  task.last = task.first;
  EXPECT_THROW(c.run(task), Error);
  task = c.task();
  task.last = 1 << 20;
  EXPECT_THROW(c.run(task), Error);
}

}  // namespace
}  // namespace tactic::test
