// Random shapes, types, layouts, lengths, options and clusterings through a whole step: one-token clusters, empty lists,
// sequences of a token and without clusters, huge scores; NaN anywhere in K, V or q, lengths and pages outside the cache.
// TACTIC_FUZZ_SEED and TACTIC_FUZZ_RUNS change what is drawn; a failure names its seed.
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
  const int v_dim = any_of(random, {dim, dim, dim, 64, 128});
  spec.kv.shape = {kv_heads * static_cast<int>(1 + random() % 16), kv_heads, dim, v_dim};
  spec.kv.k_type = spec.kv.v_type = DType::f32;
  spec.cluster_size = any_of(random, {1, 2, 16, 32, 100});
  spec.topics = static_cast<int>(1 + random() % 80);
  spec.sinks = static_cast<int>(random() % 6);
  spec.recent = static_cast<int>(1 + random() % 100);
  const int segments = static_cast<int>(1 + random() % 2);
  spec.sharpness = any_of(random, {0.0f, 1.0f, 3.0f});
  spec.noise = any_of(random, {0.0f, 0.5f});
  spec.int8_centroids = random() % 2 == 0;
  d.format.layout = any_of(random, {Layout::side_by_side, Layout::padded, Layout::head_major, Layout::blocks});
  d.format.block_size = any_of(random, {1, 7, 16, 64});
  d.format.type = any_of(random, {DeviceType::bf16, DeviceType::bf16, DeviceType::f16, DeviceType::fp8_e4m3, DeviceType::f32});
  if (d.format.type == DeviceType::fp8_e4m3) d.format.k_scale = 0.05f, d.format.v_scale = 0.02f;
  const bool half = d.format.type == DeviceType::bf16 || d.format.type == DeviceType::f16;  // then a step may be one kernel
  d.format.query = any_of(random, {DeviceType::f32, half ? d.format.type : DeviceType::bf16});
  d.options.min_context = 16, d.options.cluster_size = 16, d.options.mass = any_of(random, {1e-6f, 0.2f, 0.75f, 0.9f, 0.999f});
  d.options.goal = any_of(random, {Goal::error, Goal::error, Goal::mass});
  d.options.verify = d.options.tail_factor = false;
  d.options.int8_centroids = spec.int8_centroids;
  d.options.tail_clusters = any_of(random, {0, 8, 512});
  if (random() % 5 == 0) d.options.method = Method::paper, spec.int8_centroids = d.options.int8_centroids = false;
  d.options.joint = random() % 4 != 0;
  const auto sequences = 1 + random() % 4;
  for (std::uint64_t s = 0; s < sequences; ++s) {
    spec.kv.tokens =
        spec.sinks + spec.recent + 2 * segments + static_cast<std::int64_t>(random() % any_of(random, {4u, 300u, 3000u}));
    spec.kv.seed = random();
    spec.segments = s > 0 && random() % 4 == 0 ? 0 : segments;
    d.layers.push_back(std::make_unique<LayerCase>(spec));
  }
  return d;
}

class GpuFuzz : public OnDevice {};

// The outputs of (sequence, query head) against exact attention over what its lists hold now.
void expect_exact(const Drawn& d, DeviceStep& step, std::size_t s, int q, const std::vector<float>& out,
                  const std::vector<float>& lse) {
  const Shape& shape = step.shape();
  Tolerance bound = tolerance(d.layers[s]->kv());
  if (shape.group() > 8 && d.format.query == DeviceType::f32 && d.format.type != DeviceType::f32) {
    // no room for the remainders of the queries (attend/cuda_math.cuh): 2^-9 of each, |q| |k| from the logit's bound
    const double rounding = 0x1p-9 * bound.logit / ((shape.head_dim + 3) * 0x1p-24);
    bound.logit += rounding, bound.output += 2 * rounding * bound.output / bound.weight;
  }
  const Exact want = step.exact(static_cast<int>(s), q, step.listed(static_cast<int>(s), q / shape.group()));
  const std::size_t at = s * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(q);
  ASSERT_NEAR(lse[at], want.lse, bound.weight + bound.logit + 0x1p-8 + 1e-6 * std::abs(want.lse)) << "query head " << q;
  for (std::size_t i = 0; i < want.out.size(); ++i)
    ASSERT_NEAR(out[at * want.out.size() + i], want.out[i], bound.output + 0x1p-6) << "query head " << q << " element " << i;
}

std::uint64_t first_seed() { return environment("TACTIC_FUZZ_SEED", 1); }
std::uint64_t last_seed() { return first_seed() + environment("TACTIC_FUZZ_RUNS", 40); }

TEST_F(GpuFuzz, StepsAreExactOverTheirLists) {
  std::size_t empty = 0;
  for (std::uint64_t seed = first_seed(); seed < last_seed(); ++seed) {
    SCOPED_TRACE("TACTIC_FUZZ_SEED=" + std::to_string(seed));
    const Drawn d = draw(seed);
    DeviceStep step(d.pointers(), d.format, d.options);
    step.select();
    step.step();
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> out = step.batch().out(), lse = step.batch().lse();
    for (std::size_t s = 0; s < d.layers.size(); ++s) {
      ASSERT_EQ(step.batch().statuses()[s], 0u);
      for (int q = 0; q < step.shape().q_heads; ++q) expect_exact(d, step, s, q, out, lse);
      if (HasFatalFailure()) return;
      empty += step.listed(static_cast<int>(s), 0).tokens.empty() ? 1 : 0;
    }
  }
  if (last_seed() - first_seed() >= 40) {
    EXPECT_GT(empty, 0u) << "some lists ought to be empty";
  }
}

// One NaN in K, V or q. Heads that attend to it say NaN, and their sequence's status says so; all others stay exact.
TEST_F(GpuFuzz, OneNaNAnywhereStaysWithItsHeads) {
  for (std::uint64_t seed = first_seed(); seed < last_seed(); ++seed) {
    SCOPED_TRACE("TACTIC_FUZZ_SEED=" + std::to_string(seed));
    const Drawn d = draw(seed + 1000);
    std::mt19937_64 random(seed);
    DeviceStep step(d.pointers(), d.format, d.options);
    const Shape& shape = step.shape();
    const std::size_t s = random() % d.layers.size();
    const auto tokens = d.layers[s]->kv().view().tokens;
    const auto token = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(tokens));
    const int head = static_cast<int>(random() % static_cast<std::uint64_t>(shape.kv_heads));
    const int where = static_cast<int>(random() % 3);  // K, V, q
    const int q_head = head * shape.group() + static_cast<int>(random() % static_cast<std::uint64_t>(shape.group()));
    SCOPED_TRACE("sequence " + std::to_string(s) + " token " + std::to_string(token) + " KV head " + std::to_string(head) +
                 " query head " + std::to_string(q_head) + " in " + std::to_string(where));
    const std::size_t size = where == 2 ? size_of(d.format.query) : size_of(d.format.type);
    const auto element =
        static_cast<std::ptrdiff_t>(random() % static_cast<std::uint64_t>(where == 1 ? shape.v_head_dim : shape.head_dim) * size);
    std::byte* row = where == 0 ? step.batch().k_row(s, token, head) : step.batch().v_row(s, token, head);
    if (where == 2) {
      row = static_cast<std::byte*>(const_cast<void*>(step.batch().query().q)) +
            static_cast<std::ptrdiff_t>(s) * step.batch().query().sequence_stride +
            static_cast<std::ptrdiff_t>(static_cast<std::size_t>(q_head * shape.head_dim) * size);
    }
    cuda_ok(cudaMemset(row + element, 0xff, size));  // NaN in every type
    step.select();
    cuda_ok(cudaMemset(step.batch().status(), 0, d.layers.size() * sizeof(std::uint32_t)));
    step.step();
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> out = step.batch().out(), lse = step.batch().lse();
    const auto list = step.listed(static_cast<int>(s), head).tokens;
    const LayerIndex& index = d.layers[s]->index();
    const bool read =
        where == 2 || token < index.first() || token >= index.last() || std::find(list.begin(), list.end(), token) != list.end();
    for (std::size_t other = 0; other < d.layers.size(); ++other) {
      ASSERT_EQ(step.batch().statuses()[other], other == s && read ? device_status::non_finite : 0u) << "sequence " << other;
      for (int q = 0; q < shape.q_heads; ++q) {
        const bool struck = other == s && read && (where == 2 ? q == q_head : q / shape.group() == head);
        if (!struck) {
          expect_exact(d, step, other, q, out, lse);
          if (HasFatalFailure()) return;
          continue;
        }
        const auto at = (other * static_cast<std::size_t>(shape.q_heads) + static_cast<std::size_t>(q)) *
                        static_cast<std::size_t>(shape.v_head_dim);
        int nans = 0;
        for (int i = 0; i < shape.v_head_dim; ++i) nans += std::isnan(out[at + static_cast<std::size_t>(i)]) ? 1 : 0;
        ASSERT_EQ(nans, where == 1 ? std::max(nans, 1) : shape.v_head_dim) << "query head " << q;
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

// Page tables with ids outside the cache: told, their tokens left out, the other sequence exact.
TEST_F(GpuFuzz, QuickPagesOutsideTheCacheAreReportedAndHarmNobody) {
  DeviceBatch::Format format;
  format.layout = Layout::blocks;
  for (const std::int32_t bad : {-1, std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()}) {
    SCOPED_TRACE("block " + std::to_string(bad));
    Drawn d;
    d.options = plain_options();
    for (int s = 0; s < 2; ++s) d.layers.push_back(std::make_unique<LayerCase>(plain()));
    DeviceStep step(d.pointers(), format, d.options);
    auto* table = const_cast<std::int32_t*>(step.batch().kv().block_table) + step.batch().kv().max_blocks;
    for (int block = 0; block < step.batch().kv().max_blocks; block += 3) {
      cuda_ok(cudaMemcpy(table + block, &bad, sizeof bad, cudaMemcpyHostToDevice));
    }
    step.select();
    step.step();
    cuda_ok(cudaDeviceSynchronize());
    EXPECT_EQ(step.batch().statuses(), (std::vector<std::uint32_t>{0, device_status::bad_block}));
    const std::vector<float> out = step.batch().out(), lse = step.batch().lse();
    for (int q = 0; q < step.shape().q_heads; ++q) expect_exact(d, step, 0, q, out, lse);
    for (const float x : out) ASSERT_TRUE(std::isfinite(x));
  }
}

}  // namespace
}  // namespace tactic::test
