// The heads' way through a step: choose, attend, verify, attend the additions, finish; without barriers.
//
// Whoever is free takes a head to choose, else a piece of some head's list; whoever attends the last piece of a list takes that
// head to its next stage. So choosing for one head overlaps with reading rows for another, and nobody waits for the slowest head.
// A list is cut by its length alone and merged in order: the result does not depend on who took which piece.
#include <algorithm>
#include <chrono>
#include <thread>

#include "decode/sparse.h"

namespace tactic {
namespace {

using Clock = std::chrono::steady_clock;

// Fewest tokens of a piece: reading them takes a few microseconds, merging a piece some tenths of one.
constexpr std::int64_t kPieceTokens = 128;
// Looks around before the core is given away: about as long as a piece takes.
constexpr int kLooks = 2000;

void mark_report(const SparseStep& step, int kv_head, int round, StepReport& report) {
  const std::int64_t words = step.words();
  std::uint64_t* bits = report.token_bits.data() + kv_head * words;
  const HeadWork& work = step.head(kv_head);
  const auto mark = [&](std::int64_t t) { bits[t / 64] |= std::uint64_t{1} << (t % 64); };
  if (round == 0) {
    std::fill_n(bits, words, 0);
    for (std::int64_t t = 0; t < step.index.first(); ++t) mark(t);
    for (std::int64_t t = step.index.last(); t < step.kv.tokens; ++t) mark(t);
  }
  for (std::int64_t i = 0; i < work.count; ++i) {
    mark(work.dense ? step.index.first() + i : work.ids[static_cast<std::size_t>(i)]);
  }
}

class Flow {
 public:
  Flow(Worker& worker, const SparseStep& step, StepReport* report)
      : worker_(worker),
        rank_(worker.rank()),
        workers_(worker.size()),
        step_(step),
        report_(report != nullptr && !report->token_bits.empty() ? report : nullptr),
        clock_(step.workspace.clocks[static_cast<std::size_t>(worker.rank())]) {}

  void run() {
    Workspace& workspace = step_.workspace;
    const int heads = step_.query.shape.kv_heads;
    for (int h; (h = workspace.next_head.fetch_add(1, std::memory_order_relaxed)) < heads;) {
      choose_head(step_, h, rank_, workers_, clock_);
      publish(h, 0);
    }
    for (int idle = 0; workspace.finished_heads.load(std::memory_order_acquire) < heads; ++idle) {
      bool worked = false;
      // Each worker begins at another head: their rows lie apart, and the counters are not fought for.
      for (int i = 0; i < heads; ++i) worked |= attend_from((i + rank_ * heads / workers_) % heads);
      if (worked) idle = 0;
      if (idle <= kLooks) continue;
      worker_.check();  // a head whose worker threw is never finished
      std::this_thread::yield();
    }
  }

 private:
  HeadFlow& flow(int h) const { return step_.workspace.flows[static_cast<std::size_t>(h)]; }

  // Opens the pieces of a round's list; an empty one is done at once.
  void publish(int h, int round) {
    HeadFlow& head = flow(h);
    const std::int64_t count = step_.head(h).count;
    if (report_ != nullptr) mark_report(step_, h, round, *report_);
    const int most = pieces_of(workers_);
    const std::int64_t even = (count + most - 1) / most;
    head.piece_tokens = std::max(kPieceTokens, (even + 15) / 16 * 16);
    head.pieces[round] = static_cast<int>((count + head.piece_tokens - 1) / head.piece_tokens);
    if (head.pieces[round] == 0) return advance(h, round);
    head.done.store(0, std::memory_order_relaxed);
    head.next.store(round * HeadFlow::kRoundPieces, std::memory_order_relaxed);
    head.round.store(round, std::memory_order_release);
  }

  // Takes pieces of a head until none is left. False if there was none.
  bool attend_from(int h) {
    HeadFlow& head = flow(h);
    bool worked = false;
    for (;;) {
      const int round = head.round.load(std::memory_order_acquire);
      if (round < 0 || round >= HeadFlow::kFinished) return worked;
      // Read before taking: a number at or behind the end of the round that was seen stands for no piece.
      int piece = head.next.load(std::memory_order_relaxed);
      if (piece / HeadFlow::kRoundPieces != round || piece % HeadFlow::kRoundPieces >= head.pieces[round]) return worked;
      if (!head.next.compare_exchange_weak(piece, piece + 1, std::memory_order_acq_rel)) continue;
      attend_one(h, round, piece % HeadFlow::kRoundPieces);
      worked = true;
    }
  }

  void attend_one(int h, int round, int piece) {
    const auto start = Clock::now();
    HeadFlow& head = flow(h);
    const std::int64_t first = piece * head.piece_tokens;
    const std::int64_t count = std::min(head.piece_tokens, step_.head(h).count - first);
    attend_piece(step_, h, round, first, count, round * pieces_of(workers_) + piece);
    const bool last = head.done.fetch_add(1, std::memory_order_acq_rel) + 1 == head.pieces[round];
    clock_.attend += std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    if (last) advance(h, round);
  }

  // The list of a round is attended: on to the next stage.
  void advance(int h, int round) {
    if (round == 0 && step_.verifies()) {
      verify_head(step_, h, rank_, clock_);
      return publish(h, 1);
    }
    const auto start = Clock::now();
    const HeadFlow& head = flow(h);
    int count = 0;
    for (int r = 0; r < 2; ++r) {
      for (int piece = 0; piece < head.pieces[r]; ++piece) slots_[count++] = r * pieces_of(workers_) + piece;
    }
    finish_head(step_, h, rank_, workers_, {slots_, static_cast<std::size_t>(count)});
    clock_.attend += std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    flow(h).round.store(HeadFlow::kFinished, std::memory_order_relaxed);
    step_.workspace.finished_heads.fetch_add(1, std::memory_order_release);
  }

  const Worker& worker_;
  int rank_;
  int workers_;
  const SparseStep& step_;
  StepReport* report_;
  WorkerClock& clock_;
  int slots_[2 * kMostPieces];
};

}  // namespace

void flow_phase(Worker& worker, const SparseStep& step, StepReport* report) { Flow(worker, step, report).run(); }

}  // namespace tactic
