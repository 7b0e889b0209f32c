// A step captured once replays while lengths, queries and the index change: 200 steps across a recluster border.
#include <gtest/gtest.h>

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

class GpuGraph : public OnDevice {};

constexpr int kSteps = 200, kBorder = 100;

TEST_F(GpuGraph, ReplaysAcrossAReclusterBorder) {
  LayerSpec spec;
  spec.kv.shape = {8, 2, 128, 128};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  spec.segments = 2, spec.recent = 300;
  Options options;
  options.min_context = 16, options.cluster_size = 16, options.verify = options.tail_factor = false;
  std::vector<std::unique_ptr<LayerCase>> owned;
  std::vector<LayerCase*> layers;
  std::vector<std::int32_t> lengths;
  for (const std::int64_t tokens : {1900, 1100}) {  // the caches hold what the steps append
    spec.kv.tokens = tokens, ++spec.kv.seed;
    owned.push_back(std::make_unique<LayerCase>(spec));
    layers.push_back(owned.back().get());
    lengths.push_back(static_cast<std::int32_t>(tokens) - kSteps - 1);
  }
  DeviceBatch::Format format;
  format.layout = Layout::blocks;
  DeviceStep step(layers, format, options);
  std::vector<LayerIndex> whole;
  std::vector<const LayerIndex*> parts;
  for (LayerCase* layer : layers) {  // at first, only the first segment is there
    whole.push_back(layer->index());
    layer->index().segments.resize(1);
    for (std::size_t h = 0; h < layer->index().tables.size(); ++h)
      layer->index().tables[h] = make_table(layer->index().segments, static_cast<int>(h));
    parts.push_back(&layer->index());
  }
  step.columns().refill(parts);
  Graph graph([&](cudaStream_t stream) { step.step(stream); });

  const Shape& shape = step.shape();
  for (int i = 0; i < kSteps; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    if (i == kBorder) {
      for (std::size_t s = 0; s < layers.size(); ++s) layers[s]->index() = whole[s];
      step.columns().refill(parts);
    }
    for (std::size_t s = 0; s < layers.size(); ++s) {
      ++lengths[s];
      layers[s]->kv().q() = layers[s]->draw_queries();
    }
    step.batch().set_lengths(lengths);
    step.batch().upload_queries();
    graph.replay();
    step.select();  // eagerly, for its lists: the same as those of the replay
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> out = step.batch().out();
    for (std::size_t s = 0; s < layers.size(); ++s) {
      ASSERT_EQ(step.batch().statuses()[s], 0u);
      const Tolerance bound = tolerance(layers[s]->kv());
      KvView kv = layers[s]->kv().view();
      kv.tokens = lengths[s];
      const StepResult reference =
          i % 10 == 0 ? reference_step(layers[s]->kv().query(), kv, &layers[s]->index(), options) : StepResult{};
      for (int q = 0; q < shape.q_heads; ++q) {
        const auto want =
            step.exact(static_cast<int>(s), q, step.listed(static_cast<int>(s), q / shape.group()), nullptr, lengths[s]);
        for (int e = 0; e < shape.v_head_dim; ++e) {
          const auto at = (s * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(q)) *
                              static_cast<std::size_t>(shape.v_head_dim) +
                          static_cast<std::size_t>(e);
          ASSERT_NEAR(out[at], want.out[static_cast<std::size_t>(e)], bound.output + 0x1p-6)
              << "query head " << q << " element " << e;
        }
        if (i % 10 == 0) {
          const std::vector<double> weights = true_weights(layers[s]->kv().query(), kv);
          ASSERT_NEAR(want.reached, mass_reached(reference, weights, shape, kv.tokens, q), 0.03) << "query head " << q;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tactic::test
