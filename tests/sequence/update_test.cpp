// When tokens are clustered: the prompt, further segments, their borders and pauses.
#include <gtest/gtest.h>

#include "core/error.h"
#include "support/story.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{4, 2, 64, 64};

class Update : public testing::Test {
 protected:
  Story story_{kShape, 3000};
  Stage stage_;
  Options options_ = small_options();
};

std::vector<std::pair<std::int64_t, std::int64_t>> borders(const Sequence& s, int layer = 0) {
  std::vector<std::pair<std::int64_t, std::int64_t>> b;
  for (const auto& segment : s.layer(layer).segments) b.emplace_back(segment->first, segment->last);
  return b;
}
using Borders = std::vector<std::pair<std::int64_t, std::int64_t>>;

TEST_F(Update, PromptIsDueFromTheMinimumContextOn) {
  const Sequence s(story_.config(options_));
  EXPECT_EQ(s.due(0, 511), 0);
  EXPECT_EQ(s.due(0, 512), 512 - 4 - 64);
  EXPECT_EQ(s.due(0, 2000), 2000 - 4 - 64);
}

TEST_F(Update, MethodFullIsNeverDue) {
  options_.method = Method::full;
  Sequence s(story_.config(options_));
  EXPECT_EQ(s.due(0, 3000), 0);
  EXPECT_EQ(stage_.update(s, story_, 3000).clustered, 0);
}

TEST_F(Update, PromptBecomesOneSegmentBetweenSinksAndRecent) {
  Sequence s(story_.config(options_));
  story_.observe(s, 0, 0, 1000);
  EXPECT_EQ(stage_.update(s, story_, 1000).clustered, 1000 - 68);
  EXPECT_EQ(borders(s), (Borders{{4, 936}}));
  EXPECT_EQ(s.due(0, 1000), 0);
}

TEST_F(Update, PromptIsCutIntoEqualSegmentsOfTheWantedLength) {
  options_.segment_tokens = 400;
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1268);
  EXPECT_EQ(borders(s), (Borders{{4, 404}, {404, 804}, {804, 1204}}));
}

TEST_F(Update, FurtherSegmentIsDueExactlyWhenSoManyTokensHaveGathered) {
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1000);
  EXPECT_EQ(s.due(0, 1255), 0);
  EXPECT_EQ(stage_.update(s, story_, 1255).clustered, 0);
  EXPECT_EQ(s.due(0, 1256), 256);
  EXPECT_EQ(stage_.update(s, story_, 1256).clustered, 256);
  EXPECT_EQ(borders(s), (Borders{{4, 936}, {936, 1192}}));
  EXPECT_EQ(s.due(0, 1256), 0);
}

TEST_F(Update, DefaultBorderIs2048Tokens) {
  options_.recluster_tokens = Options{}.recluster_tokens;
  const Story longer(kShape, 3200);
  Sequence s(longer.config(options_));
  stage_.update(s, longer, 1000);
  EXPECT_EQ(s.due(0, 936 + 64 + 2047), 0);
  EXPECT_EQ(s.due(0, 936 + 64 + 2048), 2048);
}

TEST_F(Update, FurtherSegmentWaitsUntilItMayRecluster) {
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1000, false);
  EXPECT_EQ(borders(s).size(), 1u) << "the prompt does not wait";
  EXPECT_EQ(stage_.update(s, story_, 1300, false).clustered, 0);
  EXPECT_EQ(stage_.update(s, story_, 1300, true).clustered, 256);
}

// A long absence (many tokens at once) is worked off one segment a call: the pause is bounded.
TEST_F(Update, OneCallClustersAtMostOneFurtherSegment) {
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1000);
  EXPECT_EQ(s.due(0, 2000), 256);
  for (int call = 1; call <= 3; ++call) {
    EXPECT_EQ(stage_.update(s, story_, 2000).clustered, 256);
    EXPECT_EQ(borders(s).back(), (std::pair<std::int64_t, std::int64_t>{936 + 256 * (call - 1), 936 + 256 * call}));
  }
  EXPECT_EQ(stage_.update(s, story_, 2000).clustered, 0);
}

TEST_F(Update, LayersAreIndependent) {
  Sequence s(story_.config(options_, 3));
  stage_.update(s, story_, 1000, true, 1);
  EXPECT_TRUE(borders(s, 0).empty());
  EXPECT_EQ(borders(s, 1).size(), 1u);
  EXPECT_TRUE(borders(s, 2).empty());
}

TEST_F(Update, PauseIsReported) {
  Sequence s(story_.config(options_));
  EXPECT_GT(stage_.update(s, story_, 1000).seconds, 0);
  EXPECT_EQ(stage_.update(s, story_, 1000).seconds, 0);
}

TEST_F(Update, EveryTokenIsEitherClusteredOrAttendedAlways) {
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1000);
  stage_.update(s, story_, 1300);
  for (const HeadTable& table : s.layer(0).tables) {
    EXPECT_EQ(table.first_token, 4);
    EXPECT_EQ(table.token_count, s.layer(0).last() - 4);
    std::vector<int> seen(1300, 0);
    for (const auto& tokens : table.tokens) {
      for (const std::int32_t t : tokens) ++seen[static_cast<std::size_t>(t)];
    }
    for (std::int64_t t = 0; t < 1300; ++t) EXPECT_EQ(seen[static_cast<std::size_t>(t)], t >= 4 && t < s.layer(0).last() ? 1 : 0);
  }
}

// NaN in K fails the update and leaves what was there.
TEST_F(Update, FailedClusteringLeavesTheSequenceAsItWas) {
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1000);
  std::vector<float> key = story_.kv().k(1100, 1);
  key[3] = NAN;
  story_.kv().set_k(1100, 1, key);
  try {
    stage_.update(s, story_, 1300);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::non_finite);
    EXPECT_NE(std::string(error.what()).find("1100"), std::string::npos) << error.what();
  }
  EXPECT_EQ(borders(s), (Borders{{4, 936}}));
  EXPECT_EQ(stage_.attend(s, story_, 1000).status, Status::ok);
}

TEST_F(Update, BadConfigurationIsRefused) {
  SequenceConfig config = story_.config(options_, 0);
  EXPECT_THROW(Sequence{config}, Error);
  config = story_.config(options_);
  config.shape.head_dim = 63;
  EXPECT_THROW(Sequence{config}, Error);
  config = story_.config(options_);
  config.options.mass = 2;
  EXPECT_THROW(Sequence{config}, Error);
  Sequence s(story_.config(options_));
  Options bad = options_;
  bad.cluster_size = 0;
  EXPECT_THROW(s.set_options(bad), Error);
  EXPECT_EQ(s.config().options.cluster_size, options_.cluster_size);
}

TEST_F(Update, SetOptionsKeepsSegmentsUnlessTheyWouldBeOthers) {
  Sequence s(story_.config(options_));
  stage_.update(s, story_, 1000);
  Options other = options_;
  other.mass = 0.5f;
  other.verify = other.tail_factor = false;
  other.method = Method::full;
  s.set_options(other);
  EXPECT_EQ(borders(s).size(), 1u);
  other.method = Method::tactic;
  s.set_options(other);
  EXPECT_EQ(borders(s).size(), 1u);
  other.cluster_size = 12;
  s.set_options(other);
  EXPECT_TRUE(borders(s).empty());
}

}  // namespace
}  // namespace tactic::test
