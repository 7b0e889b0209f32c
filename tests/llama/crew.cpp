// The engine's threads as a team.
#include "crew.h"

#include <gtest/gtest.h>

#include <thread>

namespace tactic::llama {
namespace {

TEST(LlamaCrew, EveryRankRunsEveryPieceOfWorkAndMeetsAtBarriers) {
  constexpr int kSize = 3, kNodes = 50, kRuns = 4;
  Crew crew;
  std::atomic<int> ran{0}, early{0};
  for (int graph = 0; graph < 2; ++graph) {
    crew.muster();
    Barrier node_end(kSize);  // as the engine has one after each node
    const auto thread = [&](int rank) {
      for (int node = 0; node < kNodes; ++node) {
        if (rank == 0) {
          crew.lead(kSize);
          EXPECT_EQ(crew.size(), kSize);
          for (int run = 0; run < kRuns; ++run) {
            std::atomic<int> arrived{0};
            crew.run([&](Worker& worker) {
              ++arrived;
              worker.barrier();
              if (arrived != kSize) ++early;
              ++ran;
            });
          }
          crew.dismiss();
        } else {
          crew.follow(rank);
        }
        node_end.wait();
      }
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < kSize; ++rank) others.emplace_back(thread, rank);
    thread(0);
    for (std::thread& other : others) other.join();
  }
  EXPECT_EQ(ran, 2 * kNodes * kRuns * kSize);
  EXPECT_EQ(early, 0);
}

TEST(LlamaCrew, AnExceptionOfAFollowerReachesTheLeader) {
  Crew crew;
  crew.muster();
  std::thread other([&] { crew.follow(1); });
  crew.lead(2);
  EXPECT_THROW(crew.run([&](Worker& worker) {
    if (worker.rank() == 1) throw std::bad_alloc();
    worker.barrier();
  }),
               std::bad_alloc);
  int ran = 0;
  crew.run([&](Worker& worker) {
    worker.barrier();
    if (worker.rank() == 0) ++ran;
  });
  crew.dismiss();
  other.join();
  EXPECT_EQ(ran, 1);
}

TEST(LlamaCrew, OneThreadWorksAlone) {
  Crew crew;
  crew.muster();
  crew.lead(1);
  int ran = 0;
  crew.run([&](Worker& worker) { ran += worker.size(); });
  crew.dismiss();
  EXPECT_EQ(ran, 1);
}

}  // namespace
}  // namespace tactic::llama
