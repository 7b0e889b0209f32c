// Teams and barriers, also with more workers than cores.
#include "core/team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace tactic {
namespace {

class Teams : public testing::TestWithParam<int> {
 protected:
  std::unique_ptr<Team> team_ = make_thread_team(GetParam());
};

TEST_P(Teams, EveryRankRunsOnce) {
  ASSERT_EQ(team_->size(), GetParam());
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(GetParam()));
  for (int round = 1; round <= 50; ++round) {
    team_->run([&](Worker& worker) {
      EXPECT_EQ(worker.size(), GetParam());
      ++runs[static_cast<std::size_t>(worker.rank())];
    });
    for (const auto& count : runs) ASSERT_EQ(count.load(), round);
  }
}

// Between two barriers every worker sees what all others wrote before the first: a counter per rank, read by all.
TEST_P(Teams, BarrierSeparatesPhases) {
  const auto size = static_cast<std::size_t>(GetParam());
  std::vector<int> phase_of(size, 0);
  std::atomic<int> early{0};
  constexpr int kPhases = 100;
  team_->run([&](Worker& worker) {
    for (int phase = 1; phase <= kPhases; ++phase) {
      phase_of[static_cast<std::size_t>(worker.rank())] = phase;
      worker.barrier();
      for (const int other : phase_of) early += other != phase ? 1 : 0;
      worker.barrier();
    }
  });
  EXPECT_EQ(early.load(), 0);
}

TEST_P(Teams, ShareCutsAllItemsIntoAdjacentEqualPieces) {
  for (const std::int64_t count : {0, 1, 2, 7, 64, 1000003}) {
    std::vector<std::pair<std::int64_t, std::int64_t>> shares(static_cast<std::size_t>(GetParam()));
    team_->run([&](Worker& worker) { shares[static_cast<std::size_t>(worker.rank())] = worker.share(count); });
    std::int64_t end = 0;
    for (const auto& [first, last] : shares) {
      EXPECT_EQ(first, end);
      EXPECT_LE(last - first, count / GetParam() + 1);
      EXPECT_GE(last - first, count / GetParam());
      end = last;
    }
    EXPECT_EQ(end, count);
  }
}

TEST_P(Teams, WakesAfterItsThreadsWentToSleep) {
  std::atomic<int> ran{0};
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // a hundred times the spin before sleep
    team_->run([&](Worker&) { ++ran; });
  }
  EXPECT_EQ(ran.load(), 3 * GetParam());
}

// The others wait at a barrier that can't fill any more.
TEST_P(Teams, AnExceptionOfAnyWorkerReachesTheCallerAndTheTeamRunsOn) {
  for (int thrower = 0; thrower < GetParam(); ++thrower) {
    std::atomic<int> after{0};
    const auto work = [&](Worker& worker) {
      worker.barrier();
      if (worker.rank() == thrower) throw std::out_of_range("rank " + std::to_string(thrower));
      worker.barrier();
      ++after;
    };
    try {
      team_->run(work);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const std::out_of_range& error) {
      EXPECT_EQ(error.what(), "rank " + std::to_string(thrower));
    }
    EXPECT_EQ(after.load(), 0);
    std::atomic<int> ran{0};
    team_->run([&](Worker& worker) {
      worker.barrier();
      ++ran;
    });
    EXPECT_EQ(ran.load(), GetParam());
  }
}

TEST_P(Teams, AnExceptionEndsLoopsThatCheck) {
  EXPECT_THROW(team_->run([&](Worker& worker) {
    if (worker.rank() == worker.size() - 1) throw std::bad_alloc();
    for (;;) worker.check();
  }),
               std::bad_alloc);
}

TEST_P(Teams, WhenAllWorkersThrowOneExceptionIsThrown) {
  EXPECT_THROW(team_->run([&](Worker& worker) { throw worker.rank(); }), int);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Teams, testing::Values(1, 2, 3, 9));

TEST(Team, ZeroThreadsMeansOneForEachUsableCore) {
  const auto team = make_thread_team(0);
  EXPECT_GE(team->size(), 1);
  EXPECT_LE(team->size(), static_cast<int>(std::thread::hardware_concurrency()));
}

TEST(Team, SerialTeamRunsOnTheCallingThread) {
  const auto team = make_serial_team();
  std::thread::id ran;
  team->run([&](Worker& worker) {
    worker.barrier();
    ran = std::this_thread::get_id();
  });
  EXPECT_EQ(ran, std::this_thread::get_id());
}

TEST(Team, CallerIsRankZero) {
  const auto team = make_thread_team(3);
  std::thread::id lead;
  team->run([&](Worker& worker) {
    if (worker.rank() == 0) lead = std::this_thread::get_id();
  });
  EXPECT_EQ(lead, std::this_thread::get_id());
}

}  // namespace
}  // namespace tactic
