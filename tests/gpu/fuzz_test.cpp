// Random shapes, types, layouts, lengths and clusterings through a whole step; huge scores, NaN in keys, empty and one-token
// clusters. TACTIC_FUZZ_SEED and TACTIC_FUZZ_RUNS change what is drawn; a failure names its seed.
#include <gtest/gtest.h>

#include <cstdlib>

#include "support/device_step.h"

namespace tactic::test {
namespace {

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

template <class T>
T any_of(std::mt19937_64& random, std::initializer_list<T> values) {
  return *(values.begin() + static_cast<std::ptrdiff_t>(random() % values.size()));
}

struct Drawn {
  std::vector<std::unique_ptr<LayerCase>> layers;
  DeviceBatch::Format format;
  Options options;

  std::vector<LayerCase*> pointers() const {
    std::vector<LayerCase*> result;
    for (const auto& layer : layers) result.push_back(layer.get());
    return result;
  }
};

Drawn draw(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Drawn d;
  LayerSpec spec;
  const int dim = any_of(random, {64, 80, 96, 128, 128, 256}), kv_heads = static_cast<int>(1 + random() % 3);
  spec.kv.shape = {kv_heads * static_cast<int>(1 + random() % 16), kv_heads, dim, dim};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  spec.cluster_size = any_of(random, {1, 2, 16, 32, 100});
  spec.topics = static_cast<int>(1 + random() % 80);
  spec.sinks = static_cast<int>(random() % 6);
  spec.recent = static_cast<int>(1 + random() % 100);
  spec.segments = static_cast<int>(1 + random() % 2);
  spec.sharpness = any_of(random, {0.0f, 1.0f, 3.0f});
  spec.noise = any_of(random, {0.0f, 0.5f});
  spec.int8_centroids = random() % 2 == 0;
  d.format.layout = any_of(random, {Layout::side_by_side, Layout::padded, Layout::head_major, Layout::blocks});
  d.format.block_size = any_of(random, {1, 7, 16, 64});
  d.format.type = any_of(random, {DeviceType::bf16, DeviceType::f16, DeviceType::fp8_e4m3});
  if (d.format.type == DeviceType::fp8_e4m3) d.format.k_scale = 0.05f, d.format.v_scale = 0.02f;
  d.format.query = any_of(random, {DeviceType::f32, DeviceType::bf16});
  d.options.min_context = 16, d.options.cluster_size = 16, d.options.mass = any_of(random, {0.2f, 0.75f, 0.9f, 0.999f});
  d.options.goal = any_of(random, {Goal::error, Goal::error, Goal::mass});
  d.options.verify = d.options.tail_factor = false;
  d.options.int8_centroids = spec.int8_centroids;
  d.options.tail_clusters = any_of(random, {0, 8, 512});
  const auto sequences = 1 + random() % 4;
  for (std::uint64_t s = 0; s < sequences; ++s) {
    spec.kv.tokens =
        spec.sinks + spec.recent + 2 * spec.segments + static_cast<std::int64_t>(random() % any_of(random, {4u, 300u, 3000u}));
    spec.kv.seed = random();
    d.layers.push_back(std::make_unique<LayerCase>(spec));
  }
  return d;
}

class GpuFuzz : public OnDevice {};

TEST_F(GpuFuzz, StepsAreExactOverTheirLists) {
  const std::uint64_t first = environment("TACTIC_FUZZ_SEED", 1), runs = environment("TACTIC_FUZZ_RUNS", 40);
  for (std::uint64_t seed = first; seed < first + runs; ++seed) {
    SCOPED_TRACE("TACTIC_FUZZ_SEED=" + std::to_string(seed));
    const Drawn d = draw(seed);
    DeviceStep step(d.pointers(), d.format, d.options);
    step.select();
    step.step();
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> out = step.batch().out(), lse = step.batch().lse();
    const Shape& shape = step.shape();
    for (std::size_t s = 0; s < d.layers.size(); ++s) {
      ASSERT_EQ(step.batch().statuses()[s], 0u);
      const Tolerance bound = tolerance(d.layers[s]->kv());
      for (int q = 0; q < shape.q_heads; ++q) {
        const auto want = step.exact(static_cast<int>(s), q, step.listed(static_cast<int>(s), q / shape.group()));
        const std::size_t at = s * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(q);
        ASSERT_NEAR(lse[at], want.lse, bound.weight + bound.logit + 0x1p-8 + 1e-6 * std::abs(want.lse)) << "query head " << q;
        for (int i = 0; i < shape.v_head_dim; ++i)
          ASSERT_NEAR(out[at * static_cast<std::size_t>(shape.v_head_dim) + static_cast<std::size_t>(i)],
                      want.out[static_cast<std::size_t>(i)], bound.output + 0x1p-6)
              << "query head " << q << " element " << i;
      }
    }
  }
}

LayerSpec plain() {
  LayerSpec spec;
  spec.kv.shape = {8, 2, 128, 128};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  return spec;
}

Options plain_options() {
  Options options;
  options.min_context = 16, options.cluster_size = 16;
  options.verify = options.tail_factor = false;
  return options;
}

TEST_F(GpuFuzz, HugeScoresStayFinite) {
  for (const float scale : {1e2f, 1e4f}) {
    SCOPED_TRACE("queries of deviation " + std::to_string(scale));
    LayerSpec spec = plain();
    spec.sharpness = scale;
    LayerCase layer(spec);
    DeviceStep step({&layer}, {}, plain_options());
    step.select();
    step.step();
    cuda_ok(cudaDeviceSynchronize());
    EXPECT_EQ(step.batch().statuses()[0], 0u);
    for (const float x : step.batch().out()) ASSERT_TRUE(std::isfinite(x));
    for (const float x : step.batch().lse()) ASSERT_TRUE(std::isfinite(x));
  }
}

// NaN in a recent key of KV head 0 of sequence 1 reaches the query heads of that KV head alone, and its sequence's status.
TEST_F(GpuFuzz, NaNStaysWithItsHead) {
  LayerCase sound(plain()), damaged(plain());
  DeviceStep clean({&sound, &damaged}, {}, plain_options());
  clean.step();
  cuda_ok(cudaDeviceSynchronize());
  const std::vector<float> before = clean.batch().out();
  const std::int64_t token = damaged.kv().view().tokens - 1;
  std::vector<float> key = damaged.kv().k(token, 0);
  key[5] = NAN;
  damaged.kv().set_k(token, 0, key);
  DeviceBatch::Format format;
  std::vector<KvCase*> cases = {&sound.kv(), &damaged.kv()};
  DeviceBatch batch(cases, format);
  const DeviceArray<std::byte> scratch(cuda::decode_scratch_bytes(batch.query(), batch.kv(), &clean.index(), plain_options()), 0);
  cuda::decode_step(batch.query(), batch.kv(), &clean.index(), plain_options(), batch.output(), batch.status(), scratch.get(),
                    nullptr);
  cuda_ok(cudaDeviceSynchronize());
  EXPECT_EQ(batch.statuses()[0], 0u);
  EXPECT_EQ(batch.statuses()[1], device_status::non_finite);
  const std::vector<float> after = batch.out();
  const std::size_t of_head = 4 * 128, of_sequence = 8 * 128;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const bool touched = i >= of_sequence && i < of_sequence + of_head;
    ASSERT_EQ(std::isnan(after[i]), touched) << "element " << i;
    // The work is cut by the lengths of all lists, the damaged head's among them: sums may be added in another order.
    if (!touched) {
      ASSERT_NEAR(after[i], before[i], 1e-4f + std::abs(before[i]) / 128) << "element " << i;
    }
  }
}

TEST_F(GpuFuzz, LengthsOutsideTheCacheAreReportedAndHarmNobody) {
  LayerCase a(plain()), b(plain());
  DeviceStep step({&a, &b}, {}, plain_options());
  for (const std::int32_t length : {-1, 1 << 30, 0}) {
    SCOPED_TRACE("length " + std::to_string(length));
    const DeviceArray<std::uint32_t> status(2, 0);
    step.batch().set_lengths({static_cast<std::int32_t>(a.kv().view().tokens), length});
    const DeviceArray<std::byte> scratch(
        cuda::decode_scratch_bytes(step.batch().query(), step.batch().kv(), &step.index(), plain_options()), 0);
    cuda::decode_step(step.batch().query(), step.batch().kv(), &step.index(), plain_options(), step.batch().output(),
                      status.get(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    EXPECT_EQ(status.host()[0], 0u);
    EXPECT_EQ(status.host()[1] & device_status::bad_length, device_status::bad_length);
    const std::vector<float> out = step.batch().out();
    for (std::size_t i = 0; i < 8 * 128; ++i) ASSERT_TRUE(std::isfinite(out[i]));
    for (std::size_t i = 8 * 128; i < out.size(); ++i) ASSERT_EQ(out[i], 0.0f);
  }
}

}  // namespace
}  // namespace tactic::test
