// The engine's own threads as a Team. All threads of a graph computation enter the plug-in's node together; rank 0 leads, the
// others wait inside for its runs. No threads of our own, no hand-over between pools, whatever the engine was built with.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "core/team.h"
#include "engine.h"

namespace tactic::llama {

class Crew final : public Team {
 public:
  // Before the graph starts: forgets what the threads of an earlier graph saw.
  void muster();

  // Rank 0: `size` threads are in this node. Ends with dismiss().
  void lead(int size);
  void dismiss();
  // Ranks 1 .. size - 1: work until rank 0 dismisses. Nothing is thrown into the engine's threads.
  void follow(int rank);

  int size() const override { return size_; }
  void run(FunctionRef<void(Worker&)> work) override;

 private:
  void publish(const FunctionRef<void(Worker&)>* work);

  struct alignas(64) Seen {
    std::uint32_t epoch = 0;
  };
  int size_ = 1;
  Meeting meeting_{1};
  std::vector<Seen> seen_ = std::vector<Seen>(GGML_MAX_N_THREADS);  // [rank], each its thread's own
  int most_ = 0;                                                    // ranks that have been used
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  const FunctionRef<void(Worker&)>* work_ = nullptr;  // null: dismissed
};

}  // namespace tactic::llama
