// Publishing work to the engine's threads and waiting for them.
#include "crew.h"

#include <sched.h>

#include <algorithm>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace tactic::llama {
namespace {

// Spins before a waiting thread gives its core away: about 100 us, longer than any stage of a decode step; a follower waits
// longer only while the leader clusters or the machine is oversubscribed.
constexpr int kSpins = 4000;

template <typename Done>
void wait_until(Done done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < kSpins) {
#if defined(__x86_64__) || defined(__i386__)
      _mm_pause();
#endif
    } else {
      sched_yield();
    }
  }
}

}  // namespace

void Crew::muster() {
  epoch_.store(0, std::memory_order_relaxed);
  std::fill_n(seen_.begin(), most_, Seen{});
}

void Crew::lead(int size) {
  size_ = size;
  most_ = std::max(most_, size);
}

void Crew::publish(const FunctionRef<void(Worker&)>* work) {
  work_ = work;
  running_.store(size_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
}

void Crew::run(FunctionRef<void(Worker&)> work) {
  meeting_.begin(size_);
  if (size_ > 1) publish(&work);
  meeting_.work(work, 0);
  wait_until([&] { return size_ == 1 || running_.load(std::memory_order_acquire) == 0; });
  meeting_.end();
}

void Crew::dismiss() {
  if (size_ == 1) return;
  publish(nullptr);
  // work_ must stay null until every follower has read it: the engine's barrier after the node sees to that.
}

void Crew::follow(int rank) {
  std::uint32_t& seen = seen_[static_cast<std::size_t>(rank)].epoch;
  for (;;) {
    wait_until([&] { return epoch_.load(std::memory_order_acquire) != seen; });
    ++seen;
    const auto* work = work_;
    if (work == nullptr) return;
    meeting_.work(*work, rank);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace tactic::llama
