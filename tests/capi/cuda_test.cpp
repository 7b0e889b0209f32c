// The C API for devices where there is none: a clear answer, and everything else goes on. (On a device: tests/gpu.)
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tactic/tactic.h"
#include "tactic/tactic_cuda.h"

namespace {

class WithoutDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (tactic_cuda_check(-1) == TACTIC_OK) GTEST_SKIP() << "there is a device";
  }
};

TEST_F(WithoutDevice, CheckSaysWhatIsMissing) {
  EXPECT_EQ(tactic_cuda_check(0), TACTIC_UNSUPPORTED);
  const std::string message = tactic_last_error();
  EXPECT_TRUE(message.find("without CUDA") != std::string::npos || message.find("no CUDA driver") != std::string::npos ||
              message.find("no usable GPU") != std::string::npos || message.find("newer driver") != std::string::npos)
      << message;
}

TEST_F(WithoutDevice, AnOldDriverIsToldBothVersions) {
  const char* version = std::getenv("TACTIC_TEST_OLD_DRIVER");  // of tests/gpu/driver
  if (version == nullptr) GTEST_SKIP() << "no old driver in the library path";
  EXPECT_EQ(tactic_cuda_check(-1), TACTIC_UNSUPPORTED);
  const std::string message = tactic_last_error();
  EXPECT_NE(message.find(std::string("the driver supports CUDA ") + version + ", this library was built with"), std::string::npos)
      << message;
  EXPECT_NE(message.find("install a newer driver"), std::string::npos) << message;
}

TEST_F(WithoutDevice, BatchIsRefusedAndTheCpuGoesOn) {
  tactic_sequence_config sequence;
  ASSERT_EQ(tactic_sequence_config_init(&sequence, sizeof sequence), TACTIC_OK);
  sequence.attention = {8, 2, 64, 64, 0, 0};
  sequence.layers = 2;
  tactic_cuda_batch_config config;
  ASSERT_EQ(tactic_cuda_batch_config_init(&config, sizeof config), TACTIC_OK);
  config.sequence = &sequence;
  config.max_length = 1000;
  auto* batch = reinterpret_cast<tactic_cuda_batch*>(1);
  EXPECT_EQ(tactic_cuda_batch_create(&config, &batch), TACTIC_UNSUPPORTED);
  EXPECT_EQ(batch, nullptr);
  EXPECT_NE(std::string(tactic_last_error()), "");
  tactic_sequence* on_cpu = nullptr;
  EXPECT_EQ(tactic_sequence_create(&sequence, &on_cpu), TACTIC_OK) << tactic_last_error();
  tactic_sequence_destroy(on_cpu);
}

TEST(CudaApi, BadValuesAreNamedBeforeTheDeviceIsAsked) {
  tactic_sequence_config sequence;
  ASSERT_EQ(tactic_sequence_config_init(&sequence, sizeof sequence), TACTIC_OK);
  sequence.attention = {8, 2, 64, 64, 0, 0};
  sequence.layers = 2;
  tactic_cuda_batch_config config;
  ASSERT_EQ(tactic_cuda_batch_config_init(&config, sizeof config), TACTIC_OK);
  tactic_cuda_batch* batch = nullptr;
  EXPECT_EQ(tactic_cuda_batch_create(&config, &batch), TACTIC_INVALID_ARGUMENT);  // no sequence
  config.sequence = &sequence;
  config.max_length = 0;
  EXPECT_EQ(tactic_cuda_batch_create(&config, &batch), TACTIC_INVALID_ARGUMENT);
  EXPECT_NE(std::string(tactic_last_error()).find("max_length is 0"), std::string::npos) << tactic_last_error();
  config.max_length = 1000;
  config.sequences = 0;
  EXPECT_EQ(tactic_cuda_batch_create(&config, &batch), TACTIC_INVALID_ARGUMENT);
  EXPECT_NE(std::string(tactic_last_error()).find("sequences is 0"), std::string::npos) << tactic_last_error();
  config.sequences = 1;
  tactic_options options;
  ASSERT_EQ(tactic_options_init(&options, sizeof options), TACTIC_OK);
  sequence.options = &options;
  EXPECT_EQ(tactic_cuda_batch_create(&config, &batch), TACTIC_UNSUPPORTED);
  EXPECT_NE(std::string(tactic_last_error()).find("options.verify is 1"), std::string::npos) << tactic_last_error();
  ASSERT_EQ(tactic_cuda_options_init(&options, sizeof options), TACTIC_OK);
  EXPECT_EQ(options.verify, 0);
  EXPECT_EQ(options.tail_factor, 0);
  EXPECT_EQ(options.promise, 0);
  EXPECT_EQ(tactic_cuda_append(nullptr, nullptr), TACTIC_INVALID_ARGUMENT);
  tactic_cuda_kv view;
  EXPECT_EQ(tactic_cuda_kv_init(&view, 3), TACTIC_INVALID_ARGUMENT);
}

}  // namespace
