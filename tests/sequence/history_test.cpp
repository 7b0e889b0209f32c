// A sequence's past: observing, rolling back, forking, invalidating.
#include <gtest/gtest.h>

#include "support/story.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{4, 2, 64, 64};

class History : public testing::Test {
 protected:
  Story story_{kShape, 2000};
  Stage stage_;
  Options options_ = small_options();

  // A prompt of 1000 tokens, then token by token to `tokens`.
  Sequence grown(std::int64_t tokens) {
    Sequence s(story_.config(options_));
    story_.observe(s, 0, 0, 1000);
    stage_.update(s, story_, 1000);
    grow(s, 1000, tokens);
    return s;
  }
  void grow(Sequence& s, std::int64_t from, std::int64_t to) {
    for (std::int64_t t = from; t < to; ++t) {
      story_.observe(s, 0, t, t + 1);
      stage_.update(s, story_, t + 1);
    }
  }
};

TEST_F(History, StepsOfASequenceAreDecodeSteps) {
  const Sequence s = grown(1400);
  const Query query{story_.q(1399), kShape, s.config().params};
  const StepResult direct =
      cpu_step(stage_.team(), stage_.workspace(), query, story_.view(1400), &s.layer(0), s.config().options);
  expect_same_step(stage_.attend(s, story_, 1400), direct);
  EXPECT_LT(direct.attended[0], 1400);
}

TEST_F(History, ObservingInOneCallOrManyGivesTheSameClusters) {
  for (const std::int64_t piece : {1, 7, 128, 999}) {
    Sequence one(story_.config(options_)), many(story_.config(options_));
    story_.observe(one, 0, 0, 1000);
    for (std::int64_t t = 0; t < 1000; t += piece) story_.observe(many, 0, t, std::min<std::int64_t>(t + piece, 1000));
    stage_.update(one, story_, 1000);
    stage_.update(many, story_, 1000);
    const StepResult a = stage_.attend(one, story_, 1000), b = stage_.attend(many, story_, 1000);
    // The moment forgets by windows of calls, so the metric may differ in its last digits: sets nearly, outputs nearly.
    for (std::size_t h = 0; h < 2; ++h)
      EXPECT_NEAR(static_cast<double>(a.attended[h]), static_cast<double>(b.attended[h]),
                  0.15 * static_cast<double>(a.attended[h]))
          << piece;
  }
}

TEST_F(History, RollbackThenAppendIsNeverHavingGoneFurther) {
  Sequence went = grown(1500);
  ASSERT_EQ(went.layer(0).segments.size(), 2u);
  went.truncate(1150);
  EXPECT_EQ(went.layer(0).segments.size(), 1u);
  EXPECT_EQ(went.layer(0).last(), 936);
  const Sequence stayed = grown(1150);
  expect_same_step(stage_.attend(went, story_, 1150), stage_.attend(stayed, story_, 1150));
}

TEST_F(History, RollbackOnASegmentsEndKeepsTheSegment) {
  Sequence s = grown(1500);
  ASSERT_EQ(s.layer(0).last(), 1192);
  s.truncate(1192);
  EXPECT_EQ(s.layer(0).last(), 1192);
  s.truncate(1191);
  EXPECT_EQ(s.layer(0).last(), 936);
  s.truncate(935);
  EXPECT_TRUE(s.layer(0).segments.empty());
  EXPECT_TRUE(s.layer(0).tables.empty());
}

TEST_F(History, RollbackIntoThePromptAttendsTheRestDense) {
  Sequence s = grown(1200);
  s.truncate(600);
  const StepResult r = stage_.attend(s, story_, 600);
  EXPECT_EQ(r.status, Status::ok);
  EXPECT_EQ(r.attended[0], 600);
  EXPECT_EQ(s.due(0, 600), 600 - 68);
}

TEST_F(History, AViewThatEndsBeforeTheSegmentsRunsDense) {
  const Sequence s = grown(1200);
  const StepResult r = stage_.attend(s, story_, 800);
  EXPECT_EQ(r.status, Status::ok);
  EXPECT_EQ(r.attended[0], 800);
}

TEST_F(History, AForkSharesSegmentsAndGoesItsOwnWay) {
  Sequence parent = grown(1100);
  Sequence child = parent;
  EXPECT_EQ(child.layer(0).segments[0].get(), parent.layer(0).segments[0].get());
  const StepResult before = stage_.attend(parent, story_, 1100);
  grow(child, 1100, 1500);
  EXPECT_EQ(child.layer(0).segments.size(), 2u);
  EXPECT_EQ(parent.layer(0).segments.size(), 1u);
  child.truncate(0);
  child.clear();
  expect_same_step(stage_.attend(parent, story_, 1100), before);
}

TEST_F(History, AForkOutlivesItsParent) {
  std::unique_ptr<Sequence> parent = std::make_unique<Sequence>(grown(1100));
  const Sequence child = *parent;
  const StepResult before = stage_.attend(*parent, story_, 1100);
  parent.reset();
  expect_same_step(stage_.attend(child, story_, 1100), before);
}

TEST_F(History, InvalidatedTokensDropTheirSegmentAndAllLater) {
  options_.segment_tokens = 300;
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 968);  // segments of 299 tokens: 4, 303, 602, 901 wide borders
  ASSERT_EQ(s.layer(0).segments.size(), 3u);
  const std::int64_t second = s.layer(0).segments[1]->first;
  const std::int64_t third = s.layer(0).segments[2]->first;
  Sequence untouched = s;
  untouched.invalidate(0, 4);
  untouched.invalidate(s.layer(0).last(), 2000);
  untouched.invalidate(500, 500);
  EXPECT_EQ(untouched.layer(0).segments.size(), 3u);
  Sequence middle = s;
  middle.invalidate(third - 1, third);
  EXPECT_EQ(middle.layer(0).last(), second);
  s.invalidate(4, 5);
  EXPECT_TRUE(s.layer(0).segments.empty());
}

TEST_F(History, ClearForgetsEverything) {
  Sequence s = grown(1100);
  EXPECT_GT(s.index_bytes(), 0u);
  s.clear();
  EXPECT_EQ(s.index_bytes(), 0u);
  EXPECT_EQ(s.due(0, 1100), 1100 - 68);
  EXPECT_EQ(stage_.attend(s, story_, 1100).attended[0], 1100);
}

}  // namespace
}  // namespace tactic::test
