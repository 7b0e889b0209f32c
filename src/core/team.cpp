#include "core/team.h"

#include <sched.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace tactic {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// About 50 us of _mm_pause (40 to 140 cycles each on current x86): longer than the engine's work between two attention
// layers, short enough not to heat an idle machine.
constexpr int kSpins = 2000;
// A barrier inside a step waits for a piece of work of the same step: spin, then give the core away.
constexpr int kBarrierSpins = 4000;

// Thrown inside a worker whose run another worker ended.
struct Left {};

class SerialTeam final : public Team {
 public:
  int size() const override { return 1; }
  void run(FunctionRef<void(Worker&)> work) override {
    Worker worker(0, 1, nullptr);
    work(worker);
  }
};

class ThreadTeam final : public Team {
 public:
  explicit ThreadTeam(int threads) : size_(threads), meeting_(threads) {
    threads_.reserve(static_cast<std::size_t>(threads) - 1);
    try {
      for (int rank = 1; rank < threads; ++rank) threads_.emplace_back([this, rank] { loop(rank); });
    } catch (...) {  // the system has no more threads
      stop();
      throw;
    }
  }
  ~ThreadTeam() override { stop(); }
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const override { return size_; }

  void run(FunctionRef<void(Worker&)> work) override {
    work_ = &work;
    meeting_.begin(size_);
    running_.store(size_ - 1, std::memory_order_relaxed);
    bool asleep = false;
    {
      const std::lock_guard lock(mutex_);
      epoch_.fetch_add(1, std::memory_order_release);
      asleep = sleeping_ > 0;
    }
    if (asleep) wake_.notify_all();
    meeting_.work(work, 0);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < kBarrierSpins) {
        relax();
      } else {
        sched_yield();
      }
    }
    meeting_.end();
  }

 private:
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void loop(int rank) {
    std::uint32_t seen = 0;
    for (;;) {
      for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) relax();
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex_);
        ++sleeping_;
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
        --sleeping_;
      }
      seen = epoch_.load(std::memory_order_acquire);
      if (stop_.load(std::memory_order_acquire)) return;
      meeting_.work(*work_, rank);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  int size_;
  Meeting meeting_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  int sleeping_ = 0;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  const FunctionRef<void(Worker&)>* work_ = nullptr;
};

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
  return 1;
}

}  // namespace

void Barrier::reset(int size) {
  size_ = size;
  waiting_.store(0, std::memory_order_relaxed);
  broken_.store(false, std::memory_order_relaxed);
}

bool Barrier::wait() {
  const std::uint32_t phase = phase_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    waiting_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return true;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
    if (broken()) return false;
    if (spins < kBarrierSpins) {
      relax();
    } else {
      sched_yield();
    }
  }
  return true;
}

void Worker::leave() { throw Left{}; }

void Meeting::begin(int size) {
  size_ = size;
  barrier_.reset(size);
  failed_.store(false, std::memory_order_relaxed);
}

void Meeting::work(FunctionRef<void(Worker&)> task, int rank) noexcept {
  try {
    Worker worker(rank, size_, &barrier_);
    task(worker);
  } catch (const Left&) {  // the exception that it left for is another worker's
  } catch (...) {
    if (!failed_.exchange(true, std::memory_order_acq_rel)) failure_ = std::current_exception();
    barrier_.break_up();
  }
}

void Meeting::end() {
  if (failed_.load(std::memory_order_acquire)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

std::unique_ptr<Team> make_serial_team() { return std::make_unique<SerialTeam>(); }

std::unique_ptr<Team> make_thread_team(int threads) {
  if (threads <= 0) threads = usable_cores();
  if (threads == 1) return make_serial_team();
  return std::make_unique<ThreadTeam>(threads);
}

}  // namespace tactic
