// Reading nodes: rotary frequencies against the engine's own ROPE, reasons to leave a node alone.
#include "graph.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numbers>

#include "mask.h"
#include "real_engine.h"

namespace tactic::llama {
namespace {

constexpr int kDim = 64;

struct RopeCase {
  const char* name;
  int mode, dims;
  float base, scale, extension;
  bool factors;
};

class LlamaRotary : public ::testing::TestWithParam<RopeCase> {};

// Turns pair p's unit vector by one position with the engine's ROPE and reads the angle.
TEST_P(LlamaRotary, FrequenciesAreThoseTheEngineTurnsBy) {
  if (!test::RealEngine::instance().available()) GTEST_SKIP() << "TACTIC_TEST_MODEL is empty";
  const RopeCase& c = GetParam();
  const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(ggml_init({1 << 20, nullptr, true}), &ggml_free);
  ggml_tensor* x = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, kDim, 1, 1);
  ggml_tensor* position = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 1);
  ggml_tensor* factors = c.factors ? ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, c.dims / 2) : nullptr;
  ggml_tensor* turned =
      ggml_rope_ext(context.get(), x, position, factors, c.dims, c.mode, 4096, c.base, c.scale, c.extension, 1.0f, 32.0f, 1.0f);
  ggml_tensor* q = ggml_permute(context.get(), turned, 0, 2, 1, 3);
  ggml_cgraph* graph = ggml_new_graph(context.get());
  ggml_build_forward_expand(graph, q);
  const std::unique_ptr<ggml_backend, decltype(&ggml_backend_free)> backend(
      ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr), &ggml_backend_free);
  const std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)> buffer(
      ggml_backend_alloc_ctx_tensors(context.get(), backend.get()), &ggml_backend_buffer_free);
  if (factors != nullptr) {
    for (int p = 0; p < c.dims / 2; ++p) static_cast<float*>(factors->data)[p] = 1 + 0.25f * static_cast<float>(p);
  }
  *static_cast<std::int32_t*>(position->data) = 1;

  const Rotary rotary = rotary_of(q, kDim);
  ASSERT_EQ(rotary.layout, c.mode == GGML_ROPE_TYPE_NEOX ? Rotary::Layout::halves : Rotary::Layout::interleaved);
  ASSERT_EQ(rotary.frequency.size(), static_cast<std::size_t>(c.dims / 2));
  for (int p = 0; p < c.dims / 2; ++p) {
    const int first = c.mode == GGML_ROPE_TYPE_NEOX ? p : 2 * p,
              second = c.mode == GGML_ROPE_TYPE_NEOX ? p + c.dims / 2 : 2 * p + 1;
    std::fill_n(static_cast<float*>(x->data), kDim, 0.0f);
    static_cast<float*>(x->data)[first] = 1;
    ASSERT_EQ(ggml_backend_graph_compute(backend.get(), graph), GGML_STATUS_SUCCESS);
    const auto* out = static_cast<const float*>(turned->data);
    // Both sides in float: 1e-5 is some 100 ulp of an angle near 1.
    EXPECT_NEAR(rotary.frequency[static_cast<std::size_t>(p)], std::atan2(out[second], out[first]), 1e-5)
        << c.name << " pair " << p;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaRotary,
                         ::testing::Values(RopeCase{"interleaved", GGML_ROPE_TYPE_NORMAL, 64, 1e5f, 1, 0, false},
                                           RopeCase{"halves", GGML_ROPE_TYPE_NEOX, 64, 1e6f, 1, 0, false},
                                           RopeCase{"partial", GGML_ROPE_TYPE_NEOX, 32, 1e4f, 1, 0, false},
                                           RopeCase{"scaled", GGML_ROPE_TYPE_NORMAL, 64, 1e4f, 0.25f, 0, false},
                                           RopeCase{"factors", GGML_ROPE_TYPE_NORMAL, 64, 5e5f, 1, 0, true},
                                           RopeCase{"yarn", GGML_ROPE_TYPE_NEOX, 64, 1e4f, 0.25f, 1, false}),
                         [](const auto& c) { return std::string(c.param.name); });

TEST(LlamaMask, ShowsZerosHidesMinusInfinityAndRefusesTheRest) {
  constexpr int kCells = 70;
  std::vector<std::uint16_t> values(2 * kCells, 0xfc00);
  values[0] = values[69] = values[kCells + 3] = 0;
  ggml_tensor mask{};
  mask.type = GGML_TYPE_F16;
  mask.ne[0] = kCells;
  mask.nb[1] = kCells * 2;
  mask.data = values.data();
  MaskReader reader;
  const auto rows = reader.read(&mask, 2);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].count, 2);
  EXPECT_TRUE(rows[0].has(69));
  EXPECT_FALSE(rows[0].has(3));
  EXPECT_EQ(rows[1].count, 1);
  EXPECT_TRUE(rows[1].has(3));

  values[5] = 0x3c00;  // 1.0: a bias
  reader.forget();
  EXPECT_TRUE(reader.read(&mask, 2).empty());
}

}  // namespace
}  // namespace tactic::llama
