// Clustering on the device where it cannot be done: NaN, bad pages, bad tasks; the slot keeps what it held.
#include <gtest/gtest.h>

#include "gpu/cluster_case.h"

namespace tactic::test {
namespace {

class GpuClusterFaults : public OnDevice {};

TEST_F(GpuClusterFaults, NaNInKIsNamedAndCommitsNothing) {
  ClusterCase c(ClusterSpec{"nan", 600});
  const DeviceRows& k = c.batch().kv().k;
  const std::uint16_t nan = 0x7fc0;
  cuda_ok(cudaMemcpy(const_cast<std::byte*>(k.data) + k.sequence_stride + 123 * k.token_stride + k.head_stride + 6, &nan, 2,
                     cudaMemcpyHostToDevice));
  c.run();
  EXPECT_EQ(c.batch().statuses(), (std::vector<std::uint32_t>{0, device_status::non_finite}));
  EXPECT_EQ(fetch(c.index().clusters, 4), (std::vector<std::int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(fetch(c.index().range, 4), (std::vector<std::int32_t>{0, 0, 0, 0}));
  try {
    cuda::throw_cluster_fault(c.job(), c.options(), c.scratch(), nullptr);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::non_finite);
    EXPECT_STREQ(error.what(), "K of token 123, KV head 1 holds NaN or infinity");
  }
}

TEST_F(GpuClusterFaults, InfinityInVIsNamed) {
  ClusterCase c(ClusterSpec{"inf", 600});
  const DeviceRows& v = c.batch().kv().v;
  const std::uint16_t infinity = 0x7f80;
  cuda_ok(cudaMemcpy(const_cast<std::byte*>(v.data) + v.sequence_stride + 300 * v.token_stride, &infinity, 2,
                     cudaMemcpyHostToDevice));
  c.run();
  EXPECT_EQ(c.batch().statuses()[1], device_status::non_finite);
  try {
    cuda::throw_cluster_fault(c.job(), c.options(), c.scratch(), nullptr);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "V of token 300, KV head 0 holds NaN or infinity");
  }
}

TEST_F(GpuClusterFaults, BlockOutsideTheCacheIsReported) {
  ClusterCase c(ClusterSpec{"block", 600, {4, 2, 64, 64}, 32, 3, DeviceType::bf16, Metric::query, Layout::blocks});
  c.batch().kv().block_count = 3;  // most ids of the table are larger
  c.run();
  EXPECT_EQ(c.batch().statuses()[1] & device_status::bad_block, device_status::bad_block);
  EXPECT_EQ(fetch(c.index().clusters, 4)[2], 0);
}

TEST_F(GpuClusterFaults, AppendBehindAGapOrWithoutRoomChangesNothing) {
  ClusterCase c(ClusterSpec{"append", 640});
  cuda::ClusterTask task = c.task();
  task.last = kFirst + 320;
  c.run(task);
  const auto before = c.clusters(0).tokens;
  task.append = true, task.first = kFirst + 321, task.last = kFirst + 640;
  c.run(task);
  EXPECT_EQ(c.batch().statuses()[1], device_status::bad_index);
  task.first = kFirst + 320, task.last = kFirst + 640;
  c.run(task);
  c.run(task);  // goes on from 320 once only
  EXPECT_EQ(fetch(c.index().range, 4)[3], kFirst + 640);
  const HeadClusters all = c.clusters(0);
  EXPECT_EQ(all.count, 20);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), all.tokens.begin()));
  expect_partition(c, all);
}

TEST_F(GpuClusterFaults, BadTasksAreRefused) {
  ClusterCase c(ClusterSpec{"refused", 100});
  cuda::ClusterTask task = c.task();
  task.sequence = 2;
  EXPECT_THROW(c.run(task), Error);
  task = c.task();
  task.last = task.first;
  EXPECT_THROW(c.run(task), Error);
  task = c.task();
  task.last = 1 << 20;
  EXPECT_THROW(c.run(task), Error);
}

}  // namespace
}  // namespace tactic::test
