// Threads as a context: a Team runs one function on all of its workers; inside, workers meet at barriers.
//
// The functions of the rooms that take a Worker are SPMD: every worker of the team calls them with the same arguments and
// each does its share. They do not end in a barrier unless they say so: the caller places barriers.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>

namespace tactic {

// A non-owning reference to a callable (no allocation, unlike std::function).
template <typename Signature>
class FunctionRef;
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& f)  // NOLINT(google-explicit-constructor): a parameter type, like std::string_view
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// Sense-counting spin barrier. Yields after a while, so that it also works with more workers than cores.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  // Whole again, for `size` threads. Nobody may be inside.
  void reset(int size);
  // False: broken; whoever waits leaves, and nobody waits any more.
  bool wait();
  void break_up() { broken_.store(true, std::memory_order_release); }
  bool broken() const { return broken_.load(std::memory_order_acquire); }

 private:
  int size_;
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  std::atomic<bool> broken_{false};
};

// One thread of a running team. Another worker's exception takes it out of the work at its next barrier() or check().
class Worker {
 public:
  Worker(int rank, int size, Barrier* barrier) : rank_(rank), size_(size), barrier_(barrier) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  void barrier() {
    if (size_ > 1 && !barrier_->wait()) leave();
  }
  // For loops that wait for other workers by other means than a barrier.
  void check() const {
    if (size_ > 1 && barrier_->broken()) leave();
  }
  // The share [begin, end) of `count` items that is this worker's, in pieces of equal number.
  std::pair<std::int64_t, std::int64_t> share(std::int64_t count) const {
    return {count * rank_ / size_, count * (rank_ + 1) / size_};
  }

 private:
  [[noreturn]] static void leave();

  int rank_;
  int size_;
  Barrier* barrier_;
};

// What the workers of a run share, for implementations of Team: begin(), work() on each thread, and, when all are back, end().
class Meeting {
 public:
  explicit Meeting(int size) : size_(size), barrier_(size) {}
  void begin(int size);
  // Keeps the first exception that a worker throws, and takes the others out of the work.
  void work(FunctionRef<void(Worker&)> task, int rank) noexcept;
  void end();  // throws the exception that was kept

 private:
  int size_;
  Barrier barrier_;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

// Runs a function on `size()` workers and returns when all are done. When a worker throws, run() throws the same exception once
// all have left; what they wrote until then is theirs to clean up, and the team can run again.
class Team {
 public:
  virtual ~Team() = default;
  virtual int size() const = 0;
  virtual void run(FunctionRef<void(Worker&)> work) = 0;
};

// The calling thread alone.
std::unique_ptr<Team> make_serial_team();

// `threads` workers: the caller of run() and threads - 1 threads of its own, which spin for about 50 us after a run (decode
// steps follow each other) and then sleep. One run() at a time. threads >= 1; 0 takes one per core the process may use.
std::unique_ptr<Team> make_thread_team(int threads);

}  // namespace tactic
