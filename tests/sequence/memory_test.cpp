// The index's size, and that a warm step of a growing sequence allocates nothing between reclusterings.
#include <gtest/gtest.h>

#include "support/count_new.h"
#include "support/story.h"

namespace tactic::test {
namespace {

class IndexSize : public testing::TestWithParam<int> {};

TEST_P(IndexSize, IsAtMostTwelvePercentOfTheKeysAndValues) {
  const Shape shape{2, 2, GetParam(), GetParam()};
  const Story story(shape, 8192);
  Options options;
  options.cluster_size = 16;
  options.iterations = 1;
  Sequence s(story.config(options));
  story.observe(s, 0, 8064, 8192);
  Stage().update(s, story, 8192);
  const auto clustered = static_cast<double>(s.layer(0).last() - s.layer(0).first());
  const double kv_bytes = clustered * shape.kv_heads * GetParam() * 2 * 2;
  EXPECT_LE(static_cast<double>(s.index_bytes()), 0.12 * kv_bytes);
}

INSTANTIATE_TEST_SUITE_P(HeadDims, IndexSize, testing::Values(64, 128));

TEST(SequenceAllocation, WarmStepsOfAGrowingSequenceDoNotAllocate) {
  const Shape shape{4, 2, 64, 64};
  const Story story(shape, 1500);
  Sequence s(story.config(small_options()));
  Stage stage;
  story.observe(s, 0, 0, 1000);
  stage.update(s, story, 1000);
  std::vector<float> out(4 * 64);
  std::int64_t before = 0;
  for (std::int64_t n = 1001; n <= 1200; ++n) {
    story.observe(s, 0, n - 1, n);
    EXPECT_EQ(stage.update(s, story, n).clustered, 0);
    s.attend(stage.team(), stage.workspace(), 0, story.q(n - 1), story.view(n), nullptr, out.data(), nullptr, nullptr);
    if (n == 1001) before = news.load();
  }
  EXPECT_EQ(news.load() - before, 0);
}

}  // namespace
}  // namespace tactic::test
