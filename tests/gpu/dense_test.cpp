// Dense attention on the device against the double-precision reference: types, layouts, head dims, groups, lengths, sinks,
// softcap.
#include <gtest/gtest.h>

#include "attend/attend.h"
#include "attend/cuda.h"
#include "support/device.h"

namespace tactic::test {
namespace {

struct Case {
  KvSpec spec{.shape = {8, 2, 128, 128}, .k_type = DType::f32, .v_type = DType::f32};
  DeviceBatch::Format format{};
  std::vector<std::int64_t> lengths = {100};
  float softcap = 0;
  bool sinks = false;
};

// Rounding of 16-bit probabilities or products, where a tensor core multiplies P by V in bf16: relative 2^-9 of the weights.
constexpr double kWeightRounding = 0x1p-8;

void check_dense(const Case& c) {
  std::vector<std::unique_ptr<KvCase>> owned;
  std::vector<KvCase*> cases;
  for (std::size_t s = 0; s < c.lengths.size(); ++s) {
    KvSpec spec = c.spec;
    spec.tokens = c.lengths[s], spec.seed = c.spec.seed + 100 * s;
    owned.push_back(std::make_unique<KvCase>(spec));
    owned.back()->params() = {1 / std::sqrt(static_cast<float>(spec.shape.head_dim)), c.softcap, nullptr};
    cases.push_back(owned.back().get());
  }
  DeviceBatch batch(cases, c.format);
  const std::vector<float> sinks(static_cast<std::size_t>(c.spec.shape.q_heads), 1.5f);
  if (c.sinks) batch.set_sinks(sinks);
  const DeviceArray<std::byte> scratch(cuda::attend_dense_scratch_bytes(batch.query(), batch.kv()), 0);
  for (int again = 0; again < 2; ++again) {  // the second call finds the scratch used
    cuda::attend_dense(batch.query(), batch.kv(), batch.output(), batch.status(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> out = batch.out(), lse = batch.lse();
    const auto heads = static_cast<std::size_t>(c.spec.shape.q_heads), dim = static_cast<std::size_t>(c.spec.shape.v_head_dim);
    for (std::size_t s = 0; s < cases.size(); ++s) {
      ASSERT_EQ(batch.statuses()[s], 0u) << "sequence " << s;
      PartialStorage want(static_cast<int>(heads), static_cast<int>(dim));
      reference::attend_all(cases[s]->query(), cases[s]->view(), {nullptr, 0, c.lengths[s]}, want.get());
      std::vector<float> out_want(heads * dim), lse_want(heads);
      normalise(want.get(), want.heads, want.dim, c.sinks ? sinks.data() : nullptr, out_want.data(), lse_want.data());
      const Tolerance bound = tolerance(*cases[s]);
      const double rounding = kWeightRounding * 4;  // v_scale 1: |v| <= 4 or so; and the output's own type
      for (std::size_t i = 0; i < out_want.size(); ++i)
        ASSERT_NEAR(out[s * heads * dim + i], out_want[i], bound.output + rounding) << "sequence " << s << " element " << i;
      for (std::size_t h = 0; h < heads; ++h)
        ASSERT_NEAR(lse[s * heads + h], lse_want[h], bound.weight + bound.logit + kWeightRounding)
            << "sequence " << s << " head " << h;
    }
  }
}

class GpuDense : public OnDevice {};

TEST_F(GpuDense, EveryTypeAndLayout) {
  std::uint64_t seed = 1;
  for (const DeviceType type : {DeviceType::bf16, DeviceType::f16, DeviceType::fp8_e4m3}) {
    for (const Layout layout : {Layout::side_by_side, Layout::padded, Layout::head_major, Layout::blocks}) {
      SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " layout " + std::to_string(static_cast<int>(layout)));
      Case c;
      c.spec.seed = ++seed;
      c.format.type = type, c.format.layout = layout;
      if (type == DeviceType::fp8_e4m3) c.format.k_scale = 0.03f, c.format.v_scale = 0.02f;
      c.lengths = {77, 1, 300};
      check_dense(c);
    }
  }
}

TEST_F(GpuDense, EveryHeadDim) {
  for (const int dim : {64, 80, 96, 128, 256}) {
    SCOPED_TRACE("head_dim " + std::to_string(dim));
    Case c;
    c.spec.shape = {8, 2, dim, dim}, c.lengths = {130};
    check_dense(c);
  }
}

TEST_F(GpuDense, EveryGroup) {
  for (int group = 1; group <= kMaxGroup; ++group) {
    SCOPED_TRACE("group " + std::to_string(group));
    Case c;
    c.spec.shape = {2 * group, 2, 64, 64}, c.lengths = {90, 200};
    check_dense(c);
  }
}

TEST_F(GpuDense, EveryLengthAroundTiles) {
  Case c;
  c.spec.shape = {4, 1, 64, 64};
  c.format.layout = Layout::blocks, c.format.block_size = 7;
  c.lengths.clear();
  for (std::int64_t n = 1; n <= 140; ++n) c.lengths.push_back(n);
  check_dense(c);
}

TEST_F(GpuDense, LongSequencesOfDifferentLengths) {
  Case c;
  c.lengths = {20000, 64, 5000, 3};
  check_dense(c);
}

TEST_F(GpuDense, SoftcapAndSinks) {
  Case c;
  c.lengths = {200}, c.softcap = 20, c.sinks = true;
  c.spec.q_scale = 3;
  check_dense(c);
}

TEST_F(GpuDense, QueriesAndOutputsOf16Bits) {
  for (const DeviceType type : {DeviceType::bf16, DeviceType::f16}) {
    Case c;
    c.format.query = c.format.output = type;
    c.lengths = {150, 33};
    check_dense(c);
  }
}

// Without a block count attention knows only how far its 32-bit addresses, of 16 bytes each, reach.
TEST_F(GpuDense, BlocksBeyondTheReachOfAddressesAreReportedWithoutABlockCount) {
  KvSpec spec{.shape = {8, 2, 128, 128}, .k_type = DType::f32, .v_type = DType::f32};
  spec.tokens = 100;
  KvCase first(spec);
  spec.seed += 1;
  KvCase second(spec);
  DeviceBatch batch({&first, &second}, {.layout = Layout::blocks});
  batch.kv().block_count = 0;
  const DeviceArray<std::byte> scratch(cuda::attend_dense_scratch_bytes(batch.query(), batch.kv()), 0);
  const auto attend = [&] {
    cuda::attend_dense(batch.query(), batch.kv(), batch.output(), batch.status(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    return batch.out();
  };
  const std::vector<float> sound = attend();
  ASSERT_EQ(batch.statuses(), (std::vector<std::uint32_t>{0, 0}));
  const std::int64_t blocks = (std::int64_t{1} << 36) / batch.kv().k.block_stride + 1;  // an address that wrapped is valid
  auto* entry = const_cast<std::int32_t*>(batch.kv().block_table) + batch.kv().max_blocks;
  std::int32_t id = 0;
  cuda_ok(cudaMemcpy(&id, entry, sizeof id, cudaMemcpyDeviceToHost));
  id += static_cast<std::int32_t>(blocks);
  cuda_ok(cudaMemcpy(entry, &id, sizeof id, cudaMemcpyHostToDevice));
  const std::vector<float> out = attend();
  EXPECT_EQ(batch.statuses(), (std::vector<std::uint32_t>{0, device_status::bad_block}));
  const std::size_t half = out.size() / 2;
  EXPECT_TRUE(std::equal(out.begin(), out.begin() + half, sound.begin()));
  EXPECT_FALSE(std::equal(out.begin() + half, out.end(), sound.begin() + half));  // without the block's tokens
}

}  // namespace
}  // namespace tactic::test
