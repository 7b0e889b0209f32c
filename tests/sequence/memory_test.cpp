// The index's size; a warm step of a growing sequence allocates nothing between reclusterings; what a failed allocation leaves.
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

// Tables fit the segments they are of, so that a step can be taken at all.
void expect_whole(const Sequence& s) {
  const LayerIndex& index = s.layer(0);
  EXPECT_EQ(index.tables.size(), index.segments.empty() ? 0 : static_cast<std::size_t>(s.config().shape.kv_heads));
  for (const HeadTable& table : index.tables) {
    EXPECT_EQ(table.parts.size(), index.segments.size());
    EXPECT_EQ(table.token_count, index.last() - index.first());
  }
}

class FailedAllocation : public testing::Test {
 protected:
  FailedAllocation() : s_(story_.config(small_options())) {
    story_.observe(s_, 0, 0, 1400);
    stage_.update(s_, story_, 1000);
  }
  Story story_{{4, 2, 64, 64}, 1500};
  Sequence s_;
  Stage stage_{2};
};

TEST_F(FailedAllocation, OfAnUpdateLeavesTheSequenceAsItWas) {
  const StepResult before = stage_.attend(s_, story_, 1400);
  Sequence grown = s_;
  ASSERT_EQ(stage_.update(grown, story_, 1400).clustered, 256);
  const StepResult after = stage_.attend(grown, story_, 1400);
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    Sequence s = s_;
    try {
      const FailNew fail(failures);
      stage_.update(s, story_, 1400);
      failed = false;
    } catch (const std::bad_alloc&) {
      expect_whole(s);
      expect_same_step(stage_.attend(s, story_, 1400), before);
      stage_.update(s, story_, 1400);
    }
    expect_same_step(stage_.attend(s, story_, 1400), after);
  }
  EXPECT_GT(failures, 20);
}

TEST_F(FailedAllocation, OfATruncationMayCostTheIndexButNeverItsSense) {
  stage_.update(s_, story_, 1400);
  ASSERT_EQ(s_.layer(0).segments.size(), 2U);
  Sequence shorter = s_;
  shorter.truncate(1100);
  const StepResult expected = stage_.attend(shorter, story_, 1100);
  int dropped = 0;
  for (int number = 0;; ++number) {
    Sequence s = s_;
    {
      const FailNew fail(number);
      s.truncate(1100);
    }
    expect_whole(s);
    if (!s.layer(0).segments.empty()) {
      expect_same_step(stage_.attend(s, story_, 1100), expected);
      break;
    }
    ++dropped;
    EXPECT_EQ(stage_.attend(s, story_, 1100).attended, (std::vector<std::int64_t>{1100, 1100}));
    EXPECT_GT(stage_.update(s, story_, 1100).clustered, 0);
    expect_whole(s);
  }
  EXPECT_GT(dropped, 5);
}

}  // namespace
}  // namespace tactic::test
