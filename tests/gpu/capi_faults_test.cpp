// Bad input to the C API on a device: one line that names it, nothing corrupted, and a sound call afterwards gives what it gave
// before, to the bit.
#include <gtest/gtest.h>

#include <functional>

#include "gpu/capi_case.h"

namespace tactic::test {
namespace {

class GpuApiFaults : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    life_ = std::make_unique<DeviceLife>(std::vector<std::int64_t>{700, 500});
    life_->prefill(0, 600);
    life_->prefill(1, 400);
    life_->ask(0);
    before_ = life_->step(0);
    ASSERT_WORKS(tactic_cuda_settle(life_->batch(), nullptr));
  }
  // The fault of sequence 1 is told once, did not touch sequence 0, and is over.
  void expect_told_and_over(tactic_status status, const char* text) {
    expect_untouched(life_->outputs(0)[0], before_[0]);
    EXPECT_FAILS(tactic_cuda_settle(life_->batch(), nullptr), status, text);
    expect_sound();
  }
  void expect_sound() {
    EXPECT_EQ(life_->step(0), before_);
    EXPECT_WORKS(tactic_cuda_settle(life_->batch(), nullptr));
  }
  tactic_status step_of(const tactic_cuda_kv& kv) {
    tactic_cuda_step_args args = life_->step_args(0);
    return tactic_cuda_step(life_->batch(), 0, &kv, &args, nullptr);
  }

  std::unique_ptr<DeviceLife> life_;
  std::vector<std::vector<float>> before_;
};

TEST_F(GpuApiFaults, ValuesOutOfRangeAreNamed) {
  struct Bad {
    const char* message;
    std::function<void(tactic_cuda_kv&, tactic_cuda_step_args&, std::int32_t& layer)> spoil;
  };
  const std::vector<Bad> bad = {
      {"layer is 2, must be in [0, 1]", [](auto&, auto&, auto& layer) { layer = 2; }},
      {"kv.kv_heads is 3, must be 2", [](auto& kv, auto&, auto&) { kv.kv_heads = 3; }},
      {"kv.k.data is null", [](auto& kv, auto&, auto&) { kv.k.data = nullptr; }},
      {"kv.v.data is not aligned to 16",
       [](auto& kv, auto&, auto&) { kv.v.data = static_cast<const std::byte*>(kv.v.data) + 2; }},
      {"kv.k.dim is 128, must be 64", [](auto& kv, auto&, auto&) { kv.k.dim = 128; }},
      {"kv.v.dtype is 4", [](auto& kv, auto&, auto&) { kv.v.dtype = 4; }},
      {"kv.k.token_stride is 8 bytes", [](auto& kv, auto&, auto&) { kv.k.token_stride = 8; }},
      {"kv.k.token_stride is -256 bytes", [](auto& kv, auto&, auto&) { kv.k.token_stride = -256; }},
      {"kv.k.scale is", [](auto& kv, auto&, auto&) { kv.k.scale = NAN; }},
      {"kv.block_size is 0", [](auto& kv, auto&, auto&) { kv.block_size = 0; }},
      {"kv.max_blocks is 43, must be in [44", [](auto& kv, auto&, auto&) { kv.max_blocks = 43; }},  // of 700 tokens
      {"args.q is null", [](auto&, auto& args, auto&) { args.q = nullptr; }},
      {"args.out is not aligned", [](auto&, auto& args, auto&) { args.out = static_cast<std::byte*>(args.out) + 4; }},
      {"args.q_dtype is 3", [](auto&, auto& args, auto&) { args.q_dtype = TACTIC_CUDA_FP8_E4M3; }},
      {"args.mass is 1.5", [](auto&, auto& args, auto&) { args.mass = 1.5f; }},
      {"args.mass is nan", [](auto&, auto& args, auto&) { args.mass = NAN; }},
      {"args.q_sequence_stride is 255", [](auto&, auto& args, auto&) { args.q_sequence_stride = 255; }},
      {"args.scratch_bytes is 100, must be at least", [](auto&, auto& args, auto&) { args.scratch_bytes = 100; }},
      {"args.scratch is null", [](auto&, auto& args, auto&) { args.scratch = nullptr; }},
  };
  for (const Bad& b : bad) {
    tactic_cuda_kv kv = life_->view(0);
    tactic_cuda_step_args args = life_->step_args(0);
    std::int32_t layer = 0;
    b.spoil(kv, args, layer);
    EXPECT_FAILS(tactic_cuda_step(life_->batch(), layer, &kv, &args, nullptr), TACTIC_INVALID_ARGUMENT, b.message);
    EXPECT_NE(std::string(tactic_cuda_batch_error(life_->batch())).find(b.message), std::string::npos);
  }
  tactic_cuda_batch* batch = life_->batch();
  EXPECT_FAILS(tactic_cuda_set_length(batch, 0, 701, nullptr), TACTIC_INVALID_ARGUMENT, "tokens is 701, must be in [0, 700]");
  EXPECT_FAILS(tactic_cuda_set_length(batch, 2, 1, nullptr), TACTIC_INVALID_ARGUMENT, "sequence is 2, must be in [0, 1]");
  EXPECT_FAILS(tactic_cuda_truncate(batch, 0, -1, nullptr), TACTIC_INVALID_ARGUMENT, "tokens is -1");
  EXPECT_FAILS(tactic_cuda_cluster(batch, 1, 2, &life_->view(0), 0, 10, nullptr, nullptr), TACTIC_INVALID_ARGUMENT,
               "layers is 2");
  EXPECT_FAILS(tactic_cuda_observe_prompt(batch, 0, 0, nullptr, 0, 0, 0, 1, nullptr), TACTIC_INVALID_ARGUMENT, "q is null");
  expect_sound();
}

TEST_F(GpuApiFaults, WhatTheDeviceCannotDoIsRefusedNotIgnored) {
  tactic_options options = small_options();
  const tactic_sequence_config config = small_config(life_->shape(), 1, &options);
  tactic_cuda_batch_config whole;
  ASSERT_WORKS(tactic_cuda_batch_config_init(&whole, sizeof whole));
  whole.sequence = &config, whole.max_length = 700;
  tactic_cuda_batch* batch = nullptr;
  options.verify = 1;
  EXPECT_FAILS(tactic_cuda_batch_create(&whole, &batch), TACTIC_UNSUPPORTED, "options.verify is 1");
  options.verify = 0, options.promise = 1;
  EXPECT_FAILS(tactic_cuda_batch_create(&whole, &batch), TACTIC_UNSUPPORTED, "options.promise is 1");
  EXPECT_EQ(batch, nullptr);
  options.promise = 0, whole.max_length = (1 << 28) + 1;
  EXPECT_FAILS(tactic_cuda_batch_create(&whole, &batch), TACTIC_INVALID_ARGUMENT, "config.max_length is 268435457");
  int count = 0;
  cuda_ok(cudaGetDeviceCount(&count));
  EXPECT_FAILS(tactic_cuda_check(count), TACTIC_INVALID_ARGUMENT, ("must be in [0, " + std::to_string(count - 1) + "]").c_str());
  EXPECT_WORKS(tactic_cuda_check(0));
  expect_sound();
}

TEST_F(GpuApiFaults, TenTerabytesAreOutOfMemoryAndNothingStaysTaken) {
  const tactic_options options = small_options();
  const tactic_sequence_config config = small_config(life_->shape(), 32, &options);
  tactic_cuda_batch_config whole;
  ASSERT_WORKS(tactic_cuda_batch_config_init(&whole, sizeof whole));
  whole.sequence = &config;
  std::size_t free_before = 0, free_after = 0, total = 0;
  cuda_ok(cudaMemGetInfo(&free_before, &total));
  tactic_cuda_batch* batch = nullptr;
  for (const std::int32_t sequences : {4096, 64, 16}) {  // the first layer does not fit; several do, then one does not
    whole.sequences = sequences, whole.max_length = sequences == 4096 ? 1 << 28 : 1 << 24;
    EXPECT_FAILS(tactic_cuda_batch_create(&whole, &batch), TACTIC_OUT_OF_MEMORY, "lower sequences or max_length");
    EXPECT_EQ(batch, nullptr);
  }
  cuda_ok(cudaMemGetInfo(&free_after, &total));
  EXPECT_GE(free_after + (64 << 20), free_before) << "kernels loaded meanwhile take a little";
  expect_sound();
}

TEST_F(GpuApiFaults, BlocksOutsideTheCacheAreLeftOutAndTold) {
  tactic_cuda_kv kv = life_->view(0);
  std::vector<std::int32_t> table = fetch(kv.block_table, 2 * static_cast<std::size_t>(kv.max_blocks));
  const std::vector<std::int32_t> bad = {-1, kv.block_count, std::numeric_limits<std::int32_t>::max(),
                                         std::numeric_limits<std::int32_t>::min()};
  for (std::size_t i = 0; i < bad.size(); ++i) table[static_cast<std::size_t>(kv.max_blocks) + 24 - i] = bad[i];  // newest tokens
  const DeviceArray<std::int32_t> spoilt(table);
  kv.block_table = spoilt.get();
  EXPECT_WORKS(step_of(kv));
  const auto with_bad = life_->outputs(0);
  for (const float x : with_bad[1]) EXPECT_TRUE(std::isfinite(x));
  expect_told_and_over(TACTIC_CORRUPT, "sequence 1: its block table names a block outside the cache");
  std::int32_t clustered = 0;
  ASSERT_WORKS(tactic_cuda_truncate(life_->batch(), 1, 0, nullptr));
  ASSERT_WORKS(tactic_cuda_set_length(life_->batch(), 1, 400, nullptr));
  EXPECT_WORKS(tactic_cuda_cluster(life_->batch(), 0, 1, &kv, 1, 400, &clustered, nullptr));
  EXPECT_FAILS(tactic_cuda_settle(life_->batch(), nullptr), TACTIC_CORRUPT, "sequence 1: its block table");
  EXPECT_WORKS(tactic_cuda_cluster(life_->batch(), 0, 1, &life_->view(0), 1, 400, &clustered, nullptr));
  EXPECT_EQ(clustered, 380) << "due again, since nothing was committed";
  expect_untouched(life_->step(0)[0], before_[0]);
  EXPECT_WORKS(tactic_cuda_settle(life_->batch(), nullptr));
}

TEST_F(GpuApiFaults, LengthsOutOfRangeGiveZerosAndAreTold) {
  for (const std::int32_t length : {-5, 701, std::numeric_limits<std::int32_t>::max(), std::numeric_limits<std::int32_t>::min(),
                                    383 /* shorter than what is clustered */}) {
    SCOPED_TRACE("length " + std::to_string(length));
    const DeviceArray<std::int32_t> lengths(std::vector<std::int32_t>{600, length});
    tactic_cuda_kv kv = life_->view(0);
    kv.lengths = lengths.get();
    EXPECT_WORKS(step_of(kv));
    const auto with_bad = life_->outputs(0);
    for (const float x : with_bad[1]) ASSERT_EQ(x, 0.0f);
    expect_told_and_over(TACTIC_INVALID_STATE, "sequence 1: its length is outside [0, 700]");
  }
  ASSERT_WORKS(tactic_cuda_set_length(life_->batch(), 1, 700, nullptr));
  ASSERT_WORKS(tactic_cuda_append(life_->batch(), nullptr));  // sequence 0 goes to 601
  EXPECT_FAILS(tactic_cuda_settle(life_->batch(), nullptr), TACTIC_INVALID_STATE, "grow beyond max_length");
  ASSERT_WORKS(tactic_cuda_set_length(life_->batch(), 0, 600, nullptr));
  ASSERT_WORKS(tactic_cuda_set_length(life_->batch(), 1, 400, nullptr));
  expect_sound();
}

TEST_F(GpuApiFaults, NaNInAPromptLeavesItUnclusteredAndTheOthersAlone) {
  const DeviceRows& k = life_->memory(0).kv().k;
  const std::int32_t block = fetch(life_->view(0).block_table + life_->view(0).max_blocks, 1)[0];
  auto* element = const_cast<std::byte*>(k.data) + block * k.block_stride + 7 * k.token_stride;  // token 7, KV head 0
  std::uint16_t sound = 0;
  const std::uint16_t nan = 0x7fc0;
  cuda_ok(cudaMemcpy(&sound, element, 2, cudaMemcpyDeviceToHost));
  ASSERT_WORKS(tactic_cuda_truncate(life_->batch(), 1, 0, nullptr));
  ASSERT_WORKS(tactic_cuda_set_length(life_->batch(), 1, 400, nullptr));
  cuda_ok(cudaMemcpy(element, &nan, 2, cudaMemcpyHostToDevice));
  ASSERT_WORKS(tactic_cuda_cluster(life_->batch(), 0, 1, &life_->view(0), 1, 400, nullptr, nullptr));
  EXPECT_FAILS(tactic_cuda_settle(life_->batch(), nullptr), TACTIC_NON_FINITE, "sequence 1: q, K or V holds NaN");
  const auto with_nan = life_->step(0);
  expect_untouched(with_nan[0], before_[0]);
  for (std::size_t i = 0; i < with_nan[1].size(); ++i)
    EXPECT_EQ(std::isnan(with_nan[1][i]), i < 2 * 64) << "heads 0 and 1 read KV head 0; element " << i;
  EXPECT_FAILS(tactic_cuda_settle(life_->batch(), nullptr), TACTIC_NON_FINITE, "sequence 1");
  cuda_ok(cudaMemcpy(element, &sound, 2, cudaMemcpyHostToDevice));
  std::int32_t clustered = 0;
  ASSERT_WORKS(tactic_cuda_cluster(life_->batch(), 0, 1, &life_->view(0), 1, 400, &clustered, nullptr));
  EXPECT_EQ(clustered, 380);
  expect_sound();
}

}  // namespace
}  // namespace tactic::test
