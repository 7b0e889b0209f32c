// A decode step on the device: attention over what was listed is exact, what is listed holds the mass that was asked for and
// agrees with the reference's choice; both pipelines, goals, types, shapes, batches.
#include <gtest/gtest.h>

#include <set>

#include "support/device_step.h"

namespace tactic::test {
namespace {

struct Variant {
  const char* name;
  void (*change)(LayerSpec&, DeviceBatch::Format&, Options&);
};

class GpuStep : public OnDevice, public testing::WithParamInterface<Variant> {};

constexpr double kWeightRounding = 0x1p-8;  // weights as bf16 operands of a tensor core

std::vector<std::unique_ptr<LayerCase>> make_layers(LayerSpec spec, const std::vector<std::int64_t>& lengths) {
  std::vector<std::unique_ptr<LayerCase>> layers;
  for (const std::int64_t length : lengths) {
    spec.kv.tokens = length;
    ++spec.kv.seed;
    layers.push_back(std::make_unique<LayerCase>(spec));
  }
  return layers;
}

std::vector<LayerCase*> pointers(const std::vector<std::unique_ptr<LayerCase>>& layers) {
  std::vector<LayerCase*> result;
  for (const auto& layer : layers) result.push_back(layer.get());
  return result;
}

// The step's outputs are those of exact attention over the lists.
void expect_exact(DeviceStep& step, const std::vector<LayerCase*>& layers, const float* sinks) {
  const Shape& shape = step.shape();
  const std::vector<float> out = step.batch().out(), lse = step.batch().lse();
  for (std::size_t s = 0; s < layers.size(); ++s) {
    const Tolerance bound = tolerance(layers[s]->kv());
    for (int q = 0; q < shape.q_heads; ++q) {
      const Listed list = step.listed(static_cast<int>(s), q / shape.group());
      ASSERT_EQ(std::set<std::int32_t>(list.tokens.begin(), list.tokens.end()).size(), list.tokens.size())
          << "a token is listed twice";
      const Exact want = step.exact(static_cast<int>(s), q, list, sinks);
      const std::size_t head = s * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(q);
      for (int i = 0; i < shape.v_head_dim; ++i) {
        ASSERT_NEAR(out[head * static_cast<std::size_t>(shape.v_head_dim) + static_cast<std::size_t>(i)],
                    want.out[static_cast<std::size_t>(i)], bound.output + 4 * kWeightRounding)
            << "sequence " << s << " query head " << q << " element " << i;
      }
      ASSERT_NEAR(lse[head], want.lse, bound.weight + bound.logit + kWeightRounding) << "sequence " << s << " query head " << q;
    }
  }
}

// The heaviest cluster, by a query head's true weights, that only one of the two choices took; how many there are in `count`.
double heaviest_disputed(const LayerIndex& index, int head, const Listed& list, const StepResult& other, const double* weights,
                         int& count) {
  const std::set<std::int32_t> listed(list.tokens.begin(), list.tokens.end());
  double heaviest = 0;
  count = 0;
  for (const auto& segment : index.segments) {
    const HeadClusters& clusters = segment->heads[static_cast<std::size_t>(head)];
    for (int c = 0; c < clusters.count; ++c) {
      const auto tokens = clusters.tokens.span().subspan(static_cast<std::size_t>(clusters.begin[static_cast<std::size_t>(c)]),
                                                         static_cast<std::size_t>(clusters.size(c)));
      if (listed.contains(tokens[0]) == other.has(head, tokens[0])) continue;
      double mass = 0;
      for (const std::int32_t t : tokens) mass += weights[t];
      heaviest = std::max(heaviest, mass), ++count;
    }
  }
  return heaviest;
}

// Every head reaches about the mass that the reference's choice reaches, for about the tokens. Estimates of the two differ by the
// rounding of centroids' scores, so a cluster at the margin may fall on either side: of few clusters, one cluster's mass and size
// of slack.
void expect_choice(DeviceStep& step, const std::vector<LayerCase*>& layers, const Options& options) {
  const Shape& shape = step.shape();
  for (std::size_t s = 0; s < layers.size(); ++s) {
    const Query query = layers[s]->kv().query();
    const KvView kv = layers[s]->kv().view();
    const StepResult want = reference_step(query, kv, &layers[s]->index(), options);
    const std::vector<double> weights = true_weights(query, kv);
    for (int q = 0; q < shape.q_heads; ++q) {
      const int head = q / shape.group();
      const Listed list = step.listed(static_cast<int>(s), head);
      const double reached = step.exact(static_cast<int>(s), q, list).reached;
      int disputed = 0;
      const double slack = heaviest_disputed(layers[s]->index(), head, list, want, weights.data() + q * kv.tokens, disputed);
      EXPECT_NEAR(reached, mass_reached(want, weights, shape, kv.tokens, q),
                  disputed > 2 ? 0.02 : std::max(0.02, 0.005 + disputed * slack))
          << "sequence " << s << " query head " << q << ", " << disputed << " clusters disputed";
    }
    for (int h = 0; h < shape.kv_heads; ++h) {
      const std::int64_t always = kv.tokens - (layers[s]->index().last() - layers[s]->index().first());
      const auto listed = static_cast<double>(step.listed(static_cast<int>(s), h).tokens.size());
      const auto wanted = static_cast<double>(want.attended[static_cast<std::size_t>(h)] - always);
      EXPECT_NEAR(listed, wanted, 0.05 * wanted + 2 * layers[s]->spec().cluster_size) << "sequence " << s << " KV head " << h;
    }
  }
}

TEST_P(GpuStep, IsExactOverItsListsAndChoosesAsTheReference) {
  LayerSpec spec;
  spec.kv.shape = {8, 2, 128, 128};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  DeviceBatch::Format format;
  Options options;
  options.min_context = 256, options.cluster_size = 16, options.goal = Goal::error;
  options.verify = options.tail_factor = false;
  options.tail_clusters = 64;
  GetParam().change(spec, format, options);
  const std::string name = GetParam().name;
  std::vector<std::int64_t> lengths = {1500};
  if (name.find("batch") != std::string::npos) lengths = {1500, 400, 3100};
  const auto layers = make_layers(spec, lengths);
  for (const auto& layer : layers) {
    if (name.find("softcap") != std::string::npos) layer->kv().params().softcap = 20;
  }
  DeviceStep step(pointers(layers), format, options);
  const std::vector<float> sinks(static_cast<std::size_t>(spec.kv.shape.q_heads), 1.5f);
  const bool with_sinks = name.find("sinks") != std::string::npos;
  if (with_sinks) step.batch().set_sinks(sinks);
  step.select();
  cuda_ok(cudaDeviceSynchronize());
  for (int again = 0; again < 2; ++again) {
    step.step();
    cuda_ok(cudaDeviceSynchronize());
    for (const std::uint32_t status : step.batch().statuses()) ASSERT_EQ(status, 0u);
    expect_exact(step, pointers(layers), with_sinks ? sinks.data() : nullptr);
  }
  if (with_sinks) {
    for (const auto& layer : layers) layer->kv().params().sink_logits = sinks.data();
  }
  expect_choice(step, pointers(layers), options);
}

// One scratch for both: nothing that a sparse step leaves in it may spoil a dense one, nor the other way round.
class GpuTurns : public OnDevice {};

TEST_F(GpuTurns, QuickDenseAndSparseStepsTakeTurnsOnOneScratch) {
  LayerSpec spec;
  spec.kv.shape = {8, 2, 64, 64};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  const auto layers = make_layers(spec, {900, 500});
  Options sparse;
  sparse.min_context = 16, sparse.cluster_size = 16, sparse.verify = sparse.tail_factor = false;
  Options dense = sparse;
  dense.mass = 1;
  DeviceStep step(pointers(layers), {}, sparse);
  step.select();
  const DeviceArray<std::byte> scratch(cuda::decode_scratch_bytes(step.batch().query(), step.batch().kv(), &step.index(), sparse),
                                       0);
  for (int i = 0; i < 6; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    const bool all = i % 3 != 2;  // dense, dense, sparse, ...
    cuda::decode_step(step.batch().query(), step.batch().kv(), &step.index(), all ? dense : sparse, step.batch().output(),
                      step.batch().status(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    if (!all) expect_exact(step, pointers(layers), nullptr);
    for (std::size_t s = 0; all && s < layers.size(); ++s) {
      for (int q = 0; q < step.shape().q_heads; ++q) {
        Listed whole;
        for (std::int64_t t = layers[s]->index().first(); t < layers[s]->index().last(); ++t)
          whole.tokens.push_back(static_cast<std::int32_t>(t));
        const Exact want = step.exact(static_cast<int>(s), q, whole);
        const std::size_t at = (s * 8 + static_cast<std::size_t>(q)) * 64;
        const std::vector<float> out = step.batch().out();
        for (std::size_t e = 0; e < 64; ++e)
          ASSERT_NEAR(out[at + e], want.out[e], tolerance(layers[s]->kv()).output + 4 * kWeightRounding);
      }
    }
  }
}

using S = LayerSpec;
using F = DeviceBatch::Format;
using O = Options;
void paper(S& s, F&, O& o) {
  o = paper_options();
  o.cluster_size = 16, o.min_context = 256;
  s.int8_centroids = false;
}

INSTANTIATE_TEST_SUITE_P(
    Pipelines, GpuStep,
    testing::Values(
        Variant{"plain", [](S&, F&, O&) {}}, Variant{"batch", [](S&, F&, O&) {}},
        Variant{"low_mass", [](S&, F&, O& o) { o.mass = 0.3f; }}, Variant{"high_mass", [](S&, F&, O& o) { o.mass = 0.995f; }},
        Variant{"no_tail", [](S&, F&, O& o) { o.tail_clusters = 0; }},
        Variant{"no_spread", [](S&, F&, O& o) { o.spread = false; }}, Variant{"segments", [](S& s, F&, O&) { s.segments = 3; }},
        Variant{"segments_batch", [](S& s, F&, O&) { s.segments = 2; }},
        Variant{"bf16_centroids", [](S& s, F&, O& o) { s.int8_centroids = o.int8_centroids = false; }},
        Variant{"softcap", [](S&, F&, O&) {}}, Variant{"sinks", [](S&, F&, O&) {}},
        Variant{"no_recent", [](S& s, F&, O&) { s.sinks = 0, s.recent = 1; }},
        Variant{"long_recent", [](S& s, F&, O&) { s.recent = 200; }},
        Variant{"goal_mass", [](S&, F&, O& o) { o.goal = Goal::mass; }},
        Variant{"goal_mass_batch", [](S&, F&, O& o) { o.goal = Goal::mass; }},
        Variant{"goal_mass_low_segments", [](S& s, F&, O& o) { s.segments = 2, o.goal = Goal::mass, o.mass = 0.5f; }},
        Variant{"goal_mass_separate", [](S&, F&, O& o) { o.goal = Goal::mass, o.joint = false; }}, Variant{"paper", paper},
        Variant{"paper_batch", paper}, Variant{"paper_low", [](S& s, F& f, O& o) { paper(s, f, o), o.mass = 0.5f; }}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Shapes, GpuStep,
    testing::Values(Variant{"group8_batch",
                            [](S& s, F&, O&) {
                              s.kv.shape = {16, 2, 128, 128};
                            }},
                    Variant{"group1_d64",
                            [](S& s, F&, O&) {
                              s.kv.shape = {3, 3, 64, 64};
                            }},
                    Variant{"group16_d64",
                            [](S& s, F&, O&) {
                              s.kv.shape = {16, 1, 64, 64};
                            }},
                    Variant{"group7_d64_batch",
                            [](S& s, F&, O&) {
                              s.kv.shape = {14, 2, 64, 64};
                            }},
                    Variant{"group2_d80",
                            [](S& s, F&, O&) {
                              s.kv.shape = {4, 2, 80, 80};
                            }},
                    Variant{"group3_d96",
                            [](S& s, F&, O&) {
                              s.kv.shape = {6, 2, 96, 96};
                            }},
                    Variant{"group4_d256",
                            [](S& s, F&, O&) {
                              s.kv.shape = {8, 2, 256, 256};
                            }},
                    Variant{"f16_head_major", [](S&, F& f, O&) { f.type = DeviceType::f16, f.layout = Layout::head_major; }},
                    Variant{"padded_batch", [](S&, F& f, O&) { f.layout = Layout::padded; }},
                    Variant{"blocks_batch", [](S&, F& f, O&) { f.layout = Layout::blocks; }},
                    Variant{"blocks_of_one", [](S&, F& f, O&) { f.layout = Layout::blocks, f.block_size = 1; }},
                    Variant{"fp8_blocks_batch",
                            [](S&, F& f, O&) {
                              f.type = DeviceType::fp8_e4m3, f.layout = Layout::blocks, f.k_scale = 0.03f, f.v_scale = 0.02f;
                            }},
                    Variant{"bf16_queries", [](S&, F& f, O&) { f.query = DeviceType::bf16; }}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tactic::test
