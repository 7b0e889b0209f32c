// The queries kept to probe heads with (promise), and how long the margins found with them hold.
#include <gtest/gtest.h>

#include <sstream>

#include "support/story.h"

namespace tactic::test {
namespace {

constexpr Shape kShape{4, 2, 64, 64};

std::string bytes_of(const Sequence& s) {
  std::ostringstream out;
  s.save(out);
  return out.str();
}

// 33 tokens: fewer than two bunches of the moment, so that its sums have one order; probes of tokens 0, 16 and 32.
TEST(Probes, OneCallWithAPromptKeepsTheQueriesThatCallsTokenByTokenKeep) {
  const Story story(kShape, 64);
  Sequence at_once(story.config(small_options()));
  Sequence one_by_one = at_once;
  story.observe(at_once, 0, 0, 33);
  for (std::int64_t t = 0; t < 33; ++t) story.observe(one_by_one, 0, t, t + 1);
  EXPECT_EQ(bytes_of(at_once), bytes_of(one_by_one));
}

TEST(Probes, MarginsGoWithTheMassTheyWereProbedForAndAreProbedAnew) {
  const Story story(kShape, 1000);
  Options options = small_options();
  options.promise = true;
  Sequence s(story.config(options));
  Stage stage;
  story.observe(s, 0, 0, 1000);
  stage.update(s, story, 1000);
  ASSERT_EQ(s.layer(0).margin.size(), 2U);

  options.tail_clusters = 8;  // nothing that a margin depends on
  s.set_options(options);
  EXPECT_EQ(s.layer(0).margin.size(), 2U);
  options.mass = 0.75f;
  s.set_options(options);
  EXPECT_TRUE(s.layer(0).margin.empty());
  EXPECT_FALSE(s.layer(0).segments.empty());
  EXPECT_EQ(stage.update(s, story, 1000).clustered, 0);
  EXPECT_EQ(s.layer(0).margin.size(), 2U);
  options.promise = false;
  s.set_options(options);
  EXPECT_TRUE(s.layer(0).margin.empty());
}

}  // namespace
}  // namespace tactic::test
