// Options and shapes outside their range name field, value and range.
#include "core/options.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "core/error.h"

namespace tactic {
namespace {

// Message of the invalid_argument that `call` throws.
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::invalid_argument);
    return error.what();
  }
  return "nothing thrown";
}

struct Bad {
  const char* name;
  void (*spoil)(Options&);
  const char* message;
};

class BadOption : public testing::TestWithParam<Bad> {};

TEST_P(BadOption, IsRefusedWithFieldValueAndRange) {
  Options options;
  GetParam().spoil(options);
  EXPECT_EQ(message_of([&] { validate(options); }), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadOption,
    testing::Values(
        Bad{"mass_zero", [](Options& o) { o.mass = 0; }, "mass is 0, must be in (0, 1]"},
        Bad{"mass_above_one", [](Options& o) { o.mass = 1.5f; }, "mass is 1.5, must be in (0, 1]"},
        Bad{"mass_nan", [](Options& o) { o.mass = std::nanf(""); }, "mass is nan, must be in (0, 1]"},
        Bad{"cluster_size", [](Options& o) { o.cluster_size = 1; }, "cluster_size is 1, must be in [2, 4096]"},
        Bad{"iterations", [](Options& o) { o.iterations = 0; }, "iterations is 0, must be in [1, 100]"},
        Bad{"outlier_share", [](Options& o) { o.outlier_share = 0.75f; }, "outlier_share is 0.75, must be in [0, 0.5]"},
        Bad{"segment_tokens", [](Options& o) { o.segment_tokens = 100; }, "segment_tokens is 100, must be in [512, 1073741824]"},
        Bad{"metric", [](Options& o) { o.metric = static_cast<Metric>(7); }, "metric is 7, must be in [0, 2]"},
        Bad{"shrinkage", [](Options& o) { o.shrinkage = 0; }, "shrinkage is 0, must be in (0, 1]"},
        Bad{"sink_tokens", [](Options& o) { o.sink_tokens = -1; }, "sink_tokens is -1, must be in [0, 1024]"},
        Bad{"recent_tokens", [](Options& o) { o.recent_tokens = 65537; }, "recent_tokens is 65537, must be in [0, 65536]"},
        Bad{"recluster_tokens", [](Options& o) { o.recluster_tokens = 511; },
            "recluster_tokens is 511, must be in [512, 1073741824]"},
        Bad{"min_context", [](Options& o) { o.min_context = -5; }, "min_context is -5, must be in [0, 1073741824]"},
        Bad{"tail_clusters", [](Options& o) { o.tail_clusters = 65537; }, "tail_clusters is 65537, must be in [0, 65536]"},
        Bad{"fit_head", [](Options& o) { o.fit_head = 1.25f; }, "fit_head is 1.25, must be in [0, 1]"},
        Bad{"fit_window", [](Options& o) { o.fit_window = 0.75f; }, "fit_window is 0.75, must be in [0, 0.5]"},
        Bad{"fit_order",
            [](Options& o) {
              o.fit_first = 0.5f;
              o.fit_second = 0.5f;
            },
            "fit_second is 0.5, must be in (0.5, 1]"},
        Bad{"method", [](Options& o) { o.method = static_cast<Method>(3); }, "method is 3, must be in [0, 2]"}),
    [](const auto& test) { return test.param.name; });

TEST(Options, DefaultsAndThePapersSettingsAreValid) {
  EXPECT_NO_THROW(validate(Options{}));
  EXPECT_NO_THROW(validate(paper_options()));
}

TEST(Options, PaperSettingsSwitchOffWhatThePaperDoesNotHave) {
  const Options o = paper_options();
  EXPECT_EQ(o.method, Method::paper);
  EXPECT_EQ(o.metric, Metric::l2);
  EXPECT_EQ(o.segment_tokens, 0);
  EXPECT_EQ(o.iterations, 10);
  EXPECT_EQ(o.outlier_share, 0);
  EXPECT_FALSE(o.spread || o.joint || o.verify || o.tail_factor || o.promise || o.int8_centroids);
  EXPECT_EQ(o.tail_clusters, 0);
}

TEST(Shape, SupportedHeadDimsAndGroupsPass) {
  for (const int d : {64, 80, 96, 128, 256}) {
    for (const int v : {64, 128}) {
      for (int group = 1; group <= kMaxGroup; ++group) EXPECT_NO_THROW(validate(Shape{2 * group, 2, d, v})) << d << ' ' << group;
    }
  }
}

TEST(Shape, BadShapesAreRefusedWithFieldValueAndRange) {
  EXPECT_EQ(message_of([] { validate(Shape{7, 2, 64, 64}); }), "q_heads is 7, must be a multiple of kv_heads (2)");
  EXPECT_EQ(message_of([] { validate(Shape{34, 2, 64, 64}); }), "q_heads / kv_heads is 17, must be in [1, 16]");
  EXPECT_EQ(message_of([] { validate(Shape{0, 0, 64, 64}); }), "kv_heads is 0, must be in [1, 4096]");
  EXPECT_EQ(message_of([] { validate(Shape{4, 2, 72, 64}); }), "head_dim is 72, must be 64, 80, 96, 128 or 256");
  EXPECT_EQ(message_of([] { validate(Shape{4, 2, 64, 192}); }), "v_head_dim is 192, must be 64, 80, 96, 128 or 256");
}

}  // namespace
}  // namespace tactic
