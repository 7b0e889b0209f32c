// Following a sequence through the cells of a cache.
#include "track.h"

#include <gtest/gtest.h>

#include <numeric>

namespace tactic::llama {
namespace {

constexpr std::int64_t kCells = 256;

Visible visible(const std::vector<std::int32_t>& cells) {
  Visible v;
  v.words.assign(kCells / 64, 0);
  for (const std::int32_t cell : cells) v.words[static_cast<std::size_t>(cell) / 64] |= std::uint64_t{1} << (cell % 64);
  v.count = static_cast<std::int64_t>(cells.size());
  return v;
}

std::vector<std::int32_t> range(std::int32_t first, std::int32_t last) {
  std::vector<std::int32_t> cells(static_cast<std::size_t>(last - first));
  std::iota(cells.begin(), cells.end(), first);
  return cells;
}

class LlamaTrack : public ::testing::Test {
 protected:
  void append(const std::vector<std::int32_t>& cells) {
    ++step_;
    for (const std::int32_t cell : cells) cells_.appended(cell, step_);
  }
  // The track's list of cells.
  std::vector<std::int32_t> list() const {
    if (track_.block_table() != nullptr) return {track_.block_table(), track_.block_table() + track_.tokens()};
    return range(0, static_cast<std::int32_t>(track_.tokens()));
  }
  static SequenceConfig config() {
    SequenceConfig c;
    c.layers = 1;
    c.shape = {2, 1, 64, 64};
    return c;
  }

  std::uint32_t step_ = 0;
  Cells cells_{kCells};
  Track track_{config(), kCells};
};

TEST_F(LlamaTrack, PromptThenStepsIsTheIdentity) {
  append(range(0, 100));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 100))));
  append({100});
  append({100});  // V of the same token, in another computation
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 101))));
  EXPECT_EQ(track_.tokens(), 101);
  EXPECT_EQ(track_.block_table(), nullptr);
}

TEST_F(LlamaTrack, TokensAreInOrderOfArrivalNotOfCells) {
  append(range(100, 120));
  append(range(0, 10));
  EXPECT_TRUE(track_.reconcile(cells_, visible([] {
                                 auto cells = range(0, 10);
                                 const auto more = range(100, 120);
                                 cells.insert(cells.end(), more.begin(), more.end());
                                 return cells;
                               }())));
  auto expected = range(100, 120);
  const auto late = range(0, 10);
  expected.insert(expected.end(), late.begin(), late.end());
  EXPECT_EQ(list(), expected);
}

TEST_F(LlamaTrack, CellsOfOtherSequencesStayOut) {
  append(range(0, 50));
  append(range(50, 80));  // another sequence's
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  append({80});
  append({81});
  auto cells = range(0, 50);
  cells.push_back(81);
  EXPECT_TRUE(track_.reconcile(cells_, visible(cells)));
  EXPECT_EQ(list(), cells);
}

TEST_F(LlamaTrack, OverwrittenCellMovesToTheEnd) {
  append(range(0, 50));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  append({20});  // removed and given to a new token
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  EXPECT_EQ(list().back(), 20);
  EXPECT_EQ(track_.tokens(), 50);
}

TEST_F(LlamaTrack, VanishedTailIsForgotten) {
  append(range(0, 50));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 30))));
  EXPECT_EQ(list(), range(0, 30));
}

TEST_F(LlamaTrack, FrontThatFallsOffUntouchedIsAWindow) {
  append(range(0, 50));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  append({50});
  EXPECT_FALSE(track_.reconcile(cells_, visible(range(1, 51))));
  EXPECT_EQ(list(), range(1, 51));
}

TEST_F(LlamaTrack, FrontThatFallsOffBecauseTheRestWasTurnedIsAShift) {
  append(range(0, 50));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  cells_.altered(0, kCells, ++step_);
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(10, 50))));
  EXPECT_EQ(list(), range(10, 50));
}

TEST_F(LlamaTrack, ReaderFarBehindTheLogStillSeesEveryToken) {
  append(range(0, 10));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 10))));
  for (int i = 0; i < 5000; ++i) append({static_cast<std::int32_t>(10 + i % 100)});
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 110))));
  EXPECT_EQ(track_.tokens(), 110);
}

TEST_F(LlamaTrack, PrefixIsToldFromAnotherSetOfTheSameSize) {
  append(range(0, 50));
  EXPECT_TRUE(track_.reconcile(cells_, visible(range(0, 50))));
  EXPECT_TRUE(track_.is_prefix(visible(range(0, 49))));
  EXPECT_FALSE(track_.is_prefix(visible(range(1, 50))));
  EXPECT_FALSE(track_.is_prefix(visible(range(2, 51))));
}

}  // namespace
}  // namespace tactic::llama
