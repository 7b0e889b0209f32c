// A step as one kernel beside the same step as two: the same output within rounding, the same log-sum-exp, the same status, and
// the same bits every time.
#include <gtest/gtest.h>

#include <cstring>

#include "support/device_step.h"

namespace tactic::test {
namespace {

struct Variant {
  const char* name;
  void (*change)(LayerSpec&, DeviceBatch::Format&, Options&, std::vector<std::int64_t>& lengths);
};

class GpuFused : public OnDevice, public testing::WithParamInterface<Variant> {};

struct Result {
  std::vector<float> out, lse;
  std::vector<std::uint32_t> statuses;
};

Result run(DeviceStep& step, cuda::StepKernels kernels) {
  const auto sequences = static_cast<std::size_t>(step.batch().kv().sequences);
  const auto row = static_cast<std::size_t>(step.shape().q_heads * step.shape().v_head_dim);
  cuda_ok(cudaMemset(step.batch().output().out, 0xff, sequences * row * size_of(step.batch().output().type)));
  cuda_ok(cudaMemset(step.batch().status(), 0, sequences * sizeof(std::uint32_t)));
  step.step(nullptr, kernels);
  cuda_ok(cudaDeviceSynchronize());
  return {step.batch().out(), step.batch().lse(), step.batch().statuses()};
}

TEST_P(GpuFused, OneKernelGivesWhatTwoGive) {
  LayerSpec spec;
  spec.kv.shape = {8, 2, 128, 128};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  DeviceBatch::Format format;
  format.query = DeviceType::bf16;
  Options options;
  options.min_context = 256, options.cluster_size = 16, options.goal = Goal::error;
  options.verify = options.tail_factor = false;
  options.tail_clusters = 64;
  std::vector<std::int64_t> lengths = {1500};
  GetParam().change(spec, format, options, lengths);
  const std::string name = GetParam().name;
  std::vector<std::unique_ptr<LayerCase>> layers;
  std::vector<LayerCase*> pointers;
  for (const std::int64_t length : lengths) {
    spec.kv.tokens = length;
    ++spec.kv.seed;
    if (name == "no_clusters" && !layers.empty()) spec.segments = 0;
    layers.push_back(std::make_unique<LayerCase>(spec));
    if (name.find("softcap") != std::string::npos) layers.back()->kv().params().softcap = 20;
    pointers.push_back(layers.back().get());
  }
  DeviceStep step(pointers, format, options);
  if (name.find("sinks") != std::string::npos)
    step.batch().set_sinks(std::vector<float>(static_cast<std::size_t>(spec.kv.shape.q_heads), 1.5f));
  if (name.find("overlong") != std::string::npos) step.batch().set_lengths({static_cast<std::int32_t>(lengths[0]) + 100000, 800});
  if (name.find("negative") != std::string::npos) step.batch().set_lengths({-1, 800});
  const Result two = run(step, cuda::StepKernels::two);
  const Result one = run(step, cuda::StepKernels::one);
  EXPECT_EQ(one.statuses, two.statuses);
  // weights are rounded to 16 bits in different order
  for (std::size_t i = 0; i < two.lse.size(); ++i) {
    if (std::isinf(two.lse[i])) {
      EXPECT_EQ(one.lse[i], two.lse[i]) << "query head " << i;
    } else {
      EXPECT_NEAR(one.lse[i], two.lse[i], 1e-3 + 1e-6 * std::abs(two.lse[i])) << "query head " << i;
    }
  }
  double apart = 0, all = 0;
  for (std::size_t i = 0; i < two.out.size(); ++i) {
    ASSERT_NEAR(one.out[i], two.out[i], 0x1p-6) << "element " << i;
    apart += std::pow(one.out[i] - two.out[i], 2), all += std::pow(two.out[i], 2);
  }
  EXPECT_LT(std::sqrt(apart), 4e-3 * std::sqrt(all) + 1e-30);
  for (int again = 0; again < 5; ++again) {
    const Result same = run(step, cuda::StepKernels::one);
    ASSERT_EQ(std::memcmp(same.out.data(), one.out.data(), one.out.size() * sizeof(float)), 0) << "other bits";
  }
}

using S = LayerSpec;
using F = DeviceBatch::Format;
using O = Options;
using L = std::vector<std::int64_t>;
INSTANTIATE_TEST_SUITE_P(
    Steps, GpuFused,
    testing::
        Values(Variant{"plain", [](S&, F&, O&, L&) {}},
               Variant{"batch",
                       [](S&, F&, O&, L& l) {
                         l = {1500, 400, 3100};
                       }},
               Variant{"long", [](S&, F&, O&, L& l) { l = {20000}; }}, Variant{"softcap", [](S&, F&, O&, L&) {}},
               Variant{"sinks", [](S&, F&, O&, L&) {}}, Variant{"low_mass", [](S&, F&, O& o, L&) { o.mass = 0.3f; }},
               Variant{"high_mass", [](S&, F&, O& o, L&) { o.mass = 0.995f; }},
               Variant{"no_tail", [](S&, F&, O& o, L&) { o.tail_clusters = 0; }},
               Variant{"no_spread", [](S&, F&, O& o, L&) { o.spread = false; }},
               Variant{"segments", [](S& s, F&, O&, L&) { s.segments = 3; }},
               Variant{"no_recent", [](S& s, F&, O&, L&) { s.sinks = 0, s.recent = 1; }},
               Variant{"long_recent", [](S& s, F&, O&, L&) { s.recent = 1200; }},
               Variant{"no_clusters", [](S&, F&, O&, L& l) { l = {1500, 1, 17, 2000}; }},
               Variant{"huge_scores", [](S& s, F&, O&, L&) { s.sharpness = 60; }},
               Variant{"overlong", [](S&, F&, O&, L& l) { l = {1500, 800}; }},
               Variant{"negative", [](S&, F&, O&, L& l) { l = {1500, 800}; }},
               Variant{"f16_head_major",
                       [](S&, F& f, O&, L&) { f.type = f.query = DeviceType::f16, f.layout = Layout::head_major; }},
               Variant{"blocks", [](S&, F& f, O&, L& l) { f.layout = Layout::blocks, l = {1500, 700}; }},
               Variant{"blocks_of_seven", [](S&, F& f, O&, L&) { f.layout = Layout::blocks, f.block_size = 7; }},
               Variant{"padded", [](S&, F& f, O&, L&) { f.layout = Layout::padded; }},
               Variant{"bf16_out", [](S&, F& f, O&, L&) { f.output = DeviceType::bf16; }},
               Variant{"group8", [](S& s, F&, O&, L&) { s.kv.shape = {16, 2, 128, 128}; }},
               Variant{
                   "group7_d64",
                   [](S& s, F&, O&, L&) {
                     s.kv.shape = {14, 2, 64, 64};
                   }},
               Variant{
                   "group1_d64",
                   [](S& s, F&, O&, L&) {
                     s.kv.shape = {3, 3, 64, 64};
                   }},
               Variant{"group5_f16",
                       [](S& s, F& f, O&, L&) { s.kv.shape = {10, 2, 128, 128}, f.type = f.query = DeviceType::f16; }}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tactic::test
