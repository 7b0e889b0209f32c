// A batch of sequences over time on the device: lengths, observed queries, reclustering and rollback under a captured graph.
#include <gtest/gtest.h>

#include <numeric>

#include "cluster/cuda_metric.h"
#include "cluster/support.h"
#include "sequence/cuda.h"
#include "support/device.h"

namespace tactic::test {
namespace {

class GpuMetric : public OnDevice {};

// L L^T of the device's factor against the CPU's, from the same queries.
void expect_same_metric(const Shape& shape, Metric wanted, const Rotary& rotary) {
  const int tokens = 150;  // more than the window
  const auto width = static_cast<std::size_t>(shape.q_heads * shape.head_dim);
  std::vector<float> q = random_queries(tokens * shape.q_heads, shape.head_dim, 5);
  std::vector<std::uint16_t> bits(q.size());
  for (std::size_t i = 0; i < q.size(); ++i) bits[i] = float_to_bf16(q[i]), q[i] = bf16_to_float(bits[i]);
  DeviceArray<std::uint16_t> device_q(bits);
  DeviceArray<std::byte> memory(cuda::query_ring_bytes(2, shape));
  const cuda::QueryRing ring = cuda::make_query_ring(2, shape, memory.get());
  cuda::clear_query_ring(ring, 0, nullptr);
  cuda::clear_query_ring(ring, 1, nullptr);
  cuda::observe_prompt(ring, shape, 1, device_q.get(), DeviceType::bf16, static_cast<std::int64_t>(width) * 2, 1000, tokens,
                       nullptr);
  const DeviceArray<float> turns(cuda::turn_table(rotary, shape.head_dim));
  const cuda::TurnTable table{rotary.layout, std::min(static_cast<int>(rotary.frequency.size()), shape.head_dim / 2),
                              turns.get()};
  const auto dim = static_cast<std::size_t>(shape.head_dim);
  DeviceArray<float> factors(static_cast<std::size_t>(shape.kv_heads) * dim * dim);
  cuda::make_factors(ring, shape, 1, wanted, table, 0.1f, factors.get(), nullptr);
  const std::vector<float> all = factors.host();
  for (int h = 0; h < shape.kv_heads; ++h) {
    QueryMoment moment(shape.head_dim);
    moment.add(q.data() + static_cast<std::ptrdiff_t>(h) * shape.group() * shape.head_dim, tokens, shape.group(),
               static_cast<std::int64_t>(width), shape.head_dim);
    const MetricSpace expected = make_metric(wanted, moment, rotary, 0.1f);
    const float* factor = all.data() + static_cast<std::size_t>(h) * dim * dim;
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < dim; ++i) {
      for (std::size_t j = 0; j < dim; ++j) {
        if (j > i) {
          EXPECT_EQ(factor[i * dim + j], 0.0f) << i << ", " << j;
        }
        double want = 0;
        if (expected.kind == Metric::query) want = expected.factor[i * dim + j];
        if (expected.kind == Metric::diagonal) want = i == j ? expected.factor[i] : 0;
        error += std::pow(factor[i * dim + j] - want, 2);
        norm += want * want;
      }
    }
    EXPECT_LT(std::sqrt(error / norm), 1e-4) << "head " << h;  // f32 sums and a factorisation of condition at most d / shrinkage
  }
}

TEST_F(GpuMetric, QuickFactorIsTheCpusForBothRotaryLayouts) {
  expect_same_metric({8, 2, 64, 64}, Metric::query, make_rotary(Rotary::Layout::interleaved, 32));
  expect_same_metric({4, 1, 128, 128}, Metric::query, make_rotary(Rotary::Layout::halves, 64, 5e5));
  expect_same_metric({2, 2, 80, 80}, Metric::query, make_rotary(Rotary::Layout::halves, 16));
  expect_same_metric({2, 1, 256, 256}, Metric::query, make_rotary(Rotary::Layout::none, 0));
}

TEST_F(GpuMetric, FactorIsTheCpusDiagonal) {
  expect_same_metric({4, 2, 96, 96}, Metric::query, make_rotary(Rotary::Layout::unknown, 48));
  expect_same_metric({4, 2, 64, 64}, Metric::diagonal, make_rotary(Rotary::Layout::interleaved, 32));
  expect_same_metric({4, 2, 64, 64}, Metric::diagonal, make_rotary(Rotary::Layout::halves, 20));
}

TEST_F(GpuMetric, WithoutQueriesItIsTheIdentity) {
  const Shape shape{2, 1, 64, 64};
  DeviceArray<std::byte> memory(cuda::query_ring_bytes(1, shape));
  const cuda::QueryRing ring = cuda::make_query_ring(1, shape, memory.get());
  cuda::clear_query_ring(ring, 0, nullptr);
  const Rotary rotary = make_rotary(Rotary::Layout::halves, 32);
  const DeviceArray<float> turns(cuda::turn_table(rotary, 64));
  DeviceArray<float> factor(64 * 64);
  cuda::make_factors(ring, shape, 0, Metric::query, {rotary.layout, 32, turns.get()}, 0.1f, factor.get(), nullptr);
  const auto values = factor.host();
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], i % 65 == 0 ? 1.0f : 0.0f);
}

// ---- over time ---------------------------------------------------------------------------------------------------------

class GpuSequence : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    KvSpec spec;
    spec.shape = {4, 2, 64, 64}, spec.tokens = 3000;
    for (int s = 0; s < 2; ++s) {
      spec.seed = 40 + static_cast<std::uint64_t>(s);
      cases_.push_back(std::make_unique<KvCase>(spec));
    }
    DeviceBatch::Format format;
    format.layout = Layout::blocks, format.query = DeviceType::bf16;
    batch_ = std::make_unique<DeviceBatch>(std::vector<KvCase*>{cases_[0].get(), cases_[1].get()}, format);
    config_.layers = 2, config_.sequences = 2, config_.max_length = 3000, config_.shape = spec.shape;
    config_.rotary = make_rotary(Rotary::Layout::halves, 32);
    config_.options.cluster_size = 16, config_.options.recluster_tokens = 512, config_.options.recent_tokens = 64;
    config_.options.min_context = 256;
    sequences_ = std::make_unique<cuda::DeviceSequences>(config_);
    batch_->kv().lengths = sequences_->lengths();
  }
  std::vector<DeviceKv> kvs() const { return {batch_->kv(), batch_->kv()}; }

  // Tokens of a head's clusters: exactly [first, last), each once.
  void expect_clustered(int layer, int sequence, std::int32_t first, std::int32_t last) {
    const DeviceIndex& index = sequences_->index(layer);
    EXPECT_EQ(fetch(index.range + 2 * sequence, 2), (std::vector<std::int32_t>{first, last}));
    for (int h = 0; h < 2; ++h) {
      const auto slot = static_cast<std::size_t>(2 * sequence + h);
      const auto count = static_cast<std::size_t>(fetch(index.clusters + slot, 1)[0]);
      const auto begin = fetch(index.begin + slot * (static_cast<std::size_t>(index.capacity) + 64), count + 1);
      EXPECT_EQ(begin[count], last - first);
      auto tokens =
          fetch(index.tokens + slot * static_cast<std::size_t>(index.token_capacity), static_cast<std::size_t>(begin[count]));
      std::sort(tokens.begin(), tokens.end());
      std::vector<std::int32_t> expected(tokens.size());
      std::iota(expected.begin(), expected.end(), first);
      EXPECT_EQ(tokens, expected);
      const auto parts = static_cast<std::size_t>(fetch(index.parts + sequence, 1)[0]);
      const auto part_begin = fetch(index.part_begin + slot * 3, parts + 1);
      EXPECT_EQ(part_begin[0], 0);
      EXPECT_EQ(part_begin[parts], static_cast<std::int32_t>(count));
    }
  }

  // NaN in a key of sequence 0, KV head 0, in both layers.
  void break_key(std::int64_t token) { cuda_ok(cudaMemset(batch_->k_row(0, token, 0), 0xff, 2)); }

  cuda::DeviceSequencesConfig config_;
  std::vector<std::unique_ptr<KvCase>> cases_;
  std::unique_ptr<DeviceBatch> batch_;
  std::unique_ptr<cuda::DeviceSequences> sequences_;
};

TEST_F(GpuSequence, QuickGrowsReclustersAndRollsBack) {
  cuda::DeviceSequences& all = *sequences_;
  all.set_length(1, 1000, nullptr);
  EXPECT_EQ(all.due(0, 1, 1000), 1000 - 64 - 4);
  EXPECT_EQ(all.cluster(0, kvs(), 1, 1000, nullptr), 932);
  EXPECT_EQ(all.due(0, 1, 1000), 0);
  expect_clustered(0, 1, 4, 936);
  expect_clustered(1, 1, 4, 936);
  EXPECT_EQ(all.cluster(0, kvs(), 1, 1511, nullptr), 0);
  all.set_length(1, 1512, nullptr);
  EXPECT_EQ(all.cluster(0, kvs(), 1, 1512, nullptr), 512);
  all.set_length(1, 2100, nullptr);
  EXPECT_EQ(all.cluster(0, kvs(), 1, 2100, nullptr), 512);
  expect_clustered(0, 1, 4, 1960);
  EXPECT_EQ(fetch(all.index(0).parts + 1, 1)[0], 2) << "the prompt's part, and one for what was generated";
  all.truncate(1, 1959, nullptr);
  expect_clustered(0, 1, 4, 1448);
  EXPECT_EQ(fetch(all.lengths(), 2), (std::vector<std::int32_t>{0, 1959}));
  all.truncate(1, 1000, nullptr);
  expect_clustered(1, 1, 4, 936);
  EXPECT_EQ(fetch(all.index(0).parts + 1, 1)[0], 1);
  all.truncate(1, 900, nullptr);
  EXPECT_EQ(fetch(all.index(0).range, 4), (std::vector<std::int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(all.cluster(0, kvs(), 1, 900, nullptr), 832);
  expect_clustered(0, 1, 4, 836);
  EXPECT_NO_THROW(all.settle(nullptr));
}

TEST_F(GpuSequence, ACapturedStepGoesOnAcrossAReclusterBorder) {
  cuda::DeviceSequences& all = *sequences_;
  cudaStream_t stream = nullptr;
  cuda_ok(cudaStreamCreate(&stream));
  for (int s = 0; s < 2; ++s) {
    all.set_length(s, 700 + 100 * s, stream);
    all.cluster(0, kvs(), s, 700 + 100 * s, stream);
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  all.append(stream);
  for (int layer = 0; layer < 2; ++layer) all.observe(layer, batch_->query(), stream);
  cuda_ok(cudaStreamEndCapture(stream, &graph));
  cuda_ok(cudaGraphInstantiate(&replay, graph, 0));
  const DeviceIndex before = all.index(0);
  for (int step = 1; step <= 600; ++step) {
    cuda_ok(cudaGraphLaunch(replay, stream));
    for (int s = 0; s < 2; ++s) all.cluster(0, kvs(), s, 700 + 100 * s + step, stream);
  }
  all.settle(stream);
  for (int s = 0; s < 2; ++s) {
    EXPECT_EQ(fetch(all.lengths(), 2)[static_cast<std::size_t>(s)], 1300 + 100 * s);
    expect_clustered(1, s, 4, 700 + 100 * s - 64 + 512);
  }
  EXPECT_EQ(before.tokens, all.index(0).tokens) << "arrays stay in place";
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(GpuSequence, AFullSequenceStaysAndSaysSo) {
  cuda::DeviceSequences& all = *sequences_;
  all.set_length(0, 3000, nullptr);
  all.append(nullptr);
  EXPECT_EQ(fetch(all.lengths(), 2), (std::vector<std::int32_t>{3000, 0}));
  EXPECT_THROW(all.settle(nullptr), Error);
  EXPECT_NO_THROW(all.settle(nullptr));
  EXPECT_THROW(all.set_length(0, 3001, nullptr), Error);
}

TEST_F(GpuSequence, NaNLeavesTheTokensUnclustered) {
  cuda::DeviceSequences& all = *sequences_;
  break_key(7);
  all.set_length(0, 1000, nullptr);
  all.cluster(0, kvs(), 0, 1000, nullptr);
  EXPECT_THROW(all.settle(nullptr), Error);
  EXPECT_EQ(all.due(0, 0, 1000), 932);
  EXPECT_EQ(fetch(all.index(0).range, 2), (std::vector<std::int32_t>{0, 0}));
}

TEST_F(GpuSequence, NaNInALaterPieceOfAPromptKeepsTheEarlierOnes) {
  config_.options.segment_tokens = 300;
  sequences_ = std::make_unique<cuda::DeviceSequences>(config_);
  cuda::DeviceSequences& all = *sequences_;
  batch_->kv().lengths = all.lengths();
  break_key(400);  // of the second of three pieces
  all.set_length(0, 1000, nullptr);
  EXPECT_EQ(all.cluster(0, kvs(), 0, 1000, nullptr), 932);
  try {
    all.settle(nullptr);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::non_finite) << error.what();
  }
  expect_clustered(0, 0, 4, 4 + 932 / 3);
  EXPECT_EQ(all.due(0, 0, 1000), 512) << "the rest is due again, as generated tokens are";
}

}  // namespace
}  // namespace tactic::test
