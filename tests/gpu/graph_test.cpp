// A decode step of several layers, captured once, replays 200 times: every replay is exact attention over what it listed, and
// lists about what the reference would, while lengths, queries (and with them the budgets), pages and the index change.
#include <gtest/gtest.h>

#include <set>

#include "cluster/support.h"
#include "sequence/cuda.h"
#include "support/device_step.h"

namespace tactic::test {
namespace {

class Graph {
 public:
  template <class Call>
  explicit Graph(Call&& call) {
    cuda_ok(cudaStreamCreate(&stream_));
    cudaGraph_t graph = nullptr;
    cuda_ok(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));  // global: an allocation or synchronisation would fail
    call(stream_);
    cuda_ok(cudaStreamEndCapture(stream_, &graph));
    cuda_ok(cudaGraphInstantiate(&replay_, graph, 0));
    cuda_ok(cudaGraphDestroy(graph));
  }
  ~Graph() {
    cudaGraphExecDestroy(replay_);
    cudaStreamDestroy(stream_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay() {
    cuda_ok(cudaGraphLaunch(replay_, stream_));
    cuda_ok(cudaStreamSynchronize(stream_));
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
};

constexpr int kSteps = 200, kLayers = 3, kSequences = 2;
constexpr std::array<std::int32_t, kSequences> kPrompts = {1500, 700};
constexpr std::array<std::int32_t, kSequences> kWaiting = {150, 190};  // tokens behind the clusters when the replays begin

// The caches of all sequences in one layer, holding already what the steps append, and what a step of the layer needs.
struct OneLayer {
  std::vector<std::unique_ptr<LayerCase>> cases;
  std::unique_ptr<DeviceBatch> batch;
  DeviceArray<std::byte> select_scratch;

  explicit OneLayer(int layer) {
    LayerSpec spec;
    spec.kv.shape = {8, 2, 128, 128};
    spec.kv.k_type = spec.kv.v_type = DType::f32;
    std::vector<KvCase*> caches;
    for (int s = 0; s < kSequences; ++s) {
      spec.kv.tokens = kPrompts[static_cast<std::size_t>(s)] + kWaiting[static_cast<std::size_t>(s)] + kSteps;
      spec.kv.seed = static_cast<std::uint64_t>(10 * layer + s + 1);
      cases.push_back(std::make_unique<LayerCase>(spec));
      caches.push_back(&cases.back()->kv());
    }
    DeviceBatch::Format format;
    format.layout = Layout::blocks;
    if (layer > 0) format.query = DeviceType::bf16;  // a step as one kernel; f32 queries take two
    batch = std::make_unique<DeviceBatch>(caches, format);
  }
  void ask(float sharpness) {
    for (const auto& layer : cases) {
      layer->kv().q() = layer->draw_queries();
      for (float& x : layer->kv().q()) x *= sharpness;
    }
    batch->upload_queries();
  }
};

class GpuGraph : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    for (int l = 0; l < kLayers; ++l) layers_.push_back(std::make_unique<OneLayer>(l));
    options_.min_context = 16, options_.cluster_size = 16, options_.recent_tokens = 32, options_.recluster_tokens = 256;
    options_.verify = options_.tail_factor = false;
    const Shape& shape = layers_[0]->batch->shape();
    all_ = std::make_unique<cuda::DeviceSequences>(cuda::DeviceSequencesConfig{
        kLayers, kSequences, layers_[0]->batch->kv().max_length, shape, make_rotary(Rotary::Layout::none, 0), options_});
    for (const auto& layer : layers_) {
      layer->batch->kv().lengths = all_->lengths();
      layer->select_scratch = DeviceArray<std::byte>(
          cuda::select_scratch_bytes(layer->batch->query(), layer->batch->kv(), all_->index(0), options_), 0);
    }
    scratch_ = DeviceArray<std::byte>(
        cuda::decode_scratch_bytes(layers_[0]->batch->query(), layers_[0]->batch->kv(), &all_->index(0), options_), 0);
    for (std::size_t s = 0; s < kSequences; ++s) {
      lengths_.push_back(kPrompts[s] + kWaiting[s]);
      cluster(s, kPrompts[s]);
      all_->set_length(static_cast<int>(s), lengths_[s], nullptr);
    }
  }

  // True when something was due; the host's copies of the clusters are then fresh.
  bool cluster(std::size_t s, std::int32_t tokens) {
    std::vector<DeviceKv> views;
    for (const auto& layer : layers_) views.push_back(layer->batch->kv());
    if (tokens == kPrompts[s]) all_->set_length(static_cast<int>(s), tokens, nullptr);
    if (all_->cluster(0, views, static_cast<int>(s), tokens, nullptr) == 0) return false;
    cuda_ok(cudaDeviceSynchronize());
    for (int l = 0; l < kLayers; ++l) {
      OneLayer& layer = *layers_[static_cast<std::size_t>(l)];
      layer.cases[s]->index() = fetch_layer(all_->index(l), layer.batch->shape(), static_cast<int>(s));
    }
    return true;
  }

  void step(cudaStream_t stream) {
    all_->append(stream);
    for (int l = 0; l < kLayers; ++l) {
      DeviceBatch& batch = *layers_[static_cast<std::size_t>(l)]->batch;
      all_->observe(l, batch.query(), stream);
      cuda::decode_step(batch.query(), batch.kv(), &all_->index(l), options_, batch.output(), all_->status(), scratch_.get(),
                        stream);
    }
  }

  // The newest output of a layer against its own lists, made anew with the same bits; `choice`: the lists against the reference.
  void expect_exact(int l, bool choice) {
    OneLayer& layer = *layers_[static_cast<std::size_t>(l)];
    DeviceBatch& batch = *layer.batch;
    const Shape& shape = batch.shape();
    const DeviceLists lists = cuda::select_lists(batch.query(), batch.kv(), all_->index(l), options_, layer.select_scratch.get());
    cuda::select(batch.query(), batch.kv(), all_->index(l), options_, lists, all_->status(), layer.select_scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> out = batch.out();
    for (std::size_t s = 0; s < kSequences; ++s) {
      LayerCase& one = *layer.cases[s];
      const Tolerance bound = tolerance(one.kv());
      KvView kv = one.kv().view();
      kv.tokens = lengths_[s];
      const StepResult reference = choice ? reference_step(one.kv().query(), kv, &one.index(), options_) : StepResult{};
      const std::vector<double> weights = choice ? true_weights(one.kv().query(), kv) : std::vector<double>{};
      for (int q = 0; q < shape.q_heads; ++q) {
        const Listed list = read_lists(lists, shape, static_cast<int>(s), q / shape.group());
        budgets_.insert(list.tokens.size());
        const Exact want = exact_attention(one, q, list, nullptr, lengths_[s]);
        const float* row = out.data() + (s * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(q)) *
                                            static_cast<std::size_t>(shape.v_head_dim);
        for (std::size_t e = 0; e < want.out.size(); ++e) {
          ASSERT_NEAR(row[e], want.out[e], bound.output + 0x1p-6)
              << "layer " << l << " sequence " << s << " query head " << q << " element " << e;
        }
        if (choice) {
          ASSERT_NEAR(want.reached, mass_reached(reference, weights, shape, kv.tokens, q), 0.03)
              << "layer " << l << " sequence " << s << " query head " << q;
        }
      }
    }
  }

  Options options_;
  std::vector<std::unique_ptr<OneLayer>> layers_;
  std::unique_ptr<cuda::DeviceSequences> all_;
  DeviceArray<std::byte> scratch_;
  std::vector<std::int32_t> lengths_;
  std::set<std::size_t> budgets_;  // tokens listed, of all steps
};

TEST_F(GpuGraph, ReplaysAcrossAReclusterBorderWhilePagesMove) {
  Graph graph([&](cudaStream_t stream) { step(stream); });
  std::mt19937_64 random(5);
  int reclustered = 0;
  for (int i = 0; i < kSteps; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    for (const auto& layer : layers_) {
      layer->ask(0.5f + 0.25f * static_cast<float>(i % 5));
      if (i % 3 == 0) layer->batch->move_blocks(random, 7);
    }
    for (std::int32_t& length : lengths_) ++length;
    graph.replay();
    for (int l = 0; l < kLayers; ++l) {
      if (l == i % kLayers || i % 20 == 0) expect_exact(l, i % 20 == 0);
      if (HasFatalFailure()) return;
    }
    for (std::size_t s = 0; s < kSequences; ++s) reclustered += cluster(s, lengths_[s]) ? 1 : 0;
  }
  EXPECT_EQ(reclustered, kSequences) << "each sequence crosses a border";
  EXPECT_EQ(fetch(all_->lengths(), kSequences), lengths_);
  EXPECT_EQ(fetch(all_->index(0).parts, kSequences), (std::vector<std::int32_t>{2, 2})) << "the prompt's, and the generated";
  EXPECT_GT(budgets_.size(), 20u) << "budgets change from step to step";
  EXPECT_NO_THROW(all_->settle(nullptr));
}

}  // namespace
}  // namespace tactic::test
