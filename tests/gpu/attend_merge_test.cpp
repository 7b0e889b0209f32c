// How thread blocks hand partial results to each other: words of scratch that are zero until they are written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attend/cuda.h"
#include "support/device.h"

namespace tactic::test {
namespace {

constexpr std::int64_t kLong = 20000;  // so that every thread block of the device shares a head with others

struct Merge {
  explicit Merge(std::int64_t tokens)
      : kv({.shape = {8, 2, 128, 128}, .k_type = DType::f32, .v_type = DType::f32, .tokens = tokens}) {
    kv.params() = {1 / std::sqrt(128.0f), 0, nullptr};
  }
  // One dense call.
  void run() {
    if (batch == nullptr) {
      batch = std::make_unique<DeviceBatch>(std::vector<KvCase*>{&kv}, DeviceBatch::Format{});
      scratch = DeviceArray<std::byte>(cuda::attend_dense_scratch_bytes(batch->query(), batch->kv()), 0);
    }
    cuda::attend_dense(batch->query(), batch->kv(), batch->output(), batch->status(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
  }
  KvCase kv;
  std::unique_ptr<DeviceBatch> batch;
  DeviceArray<std::byte> scratch;
};

class GpuMerge : public OnDevice {};

TEST_F(GpuMerge, ScratchIsZeroAgainAfterACall) {
  for (const std::int64_t tokens : {std::int64_t{5}, std::int64_t{300}, kLong}) {
    SCOPED_TRACE(tokens);
    Merge merge(tokens);
    merge.run();
    const std::vector<std::byte> left = merge.scratch.host();
    EXPECT_TRUE(std::all_of(left.begin(), left.end(), [](std::byte b) { return b == std::byte{0}; }));
  }
}

// Partial sums of +0 look like nothing that has arrived, unless they are written as -0: a call would wait for them in vain.
TEST_F(GpuMerge, PartialResultsOfZeroArrive) {
  Merge merge(kLong);
  const std::vector<float> zeros(128, 0.0f);
  for (std::int64_t t = 0; t < kLong; ++t) {
    for (int head = 0; head < 2; ++head) {
      merge.kv.set_k(t, head, zeros);  // so the maximum of the logits is 0, too
      merge.kv.set_v(t, head, zeros);
    }
  }
  merge.run();
  EXPECT_EQ(merge.batch->statuses()[0], 0u);
  for (const float x : merge.batch->out()) ASSERT_EQ(x, 0.0f);
  for (const float lse : merge.batch->lse()) ASSERT_NEAR(lse, std::log(static_cast<double>(kLong)), 1e-4);
}

}  // namespace
}  // namespace tactic::test
