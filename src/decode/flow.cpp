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
// A tile of attend_list(): pieces are whole tiles.
constexpr std::int64_t kPieceGrain = 64;
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

// A part of a head's list that one worker attends to.
struct Piece {
  int head = -1;  // none
  int round = 0;
  int number = 0;
};

class Flow {
 public:
  Flow(Worker& worker, const SparseStep& step, StepReport* report)
      : worker_(worker),
        rank_(worker.rank()),
        workers_(worker.size()),
        step_(step),
        report_(report != nullptr && !report->token_bits.empty() ? report : nullptr),
        clock_(step.workspace.clocks[static_cast<std::size_t>(worker.rank())]),
        last_(worker.rank() * step.query.shape.kv_heads / worker.size()) {}

  void run() {
    const int heads = step_.query.shape.kv_heads;
    // With many heads a worker attends to what is open before it chooses for another: then one reads rows while another
    // computes, and a head's tables are still in the worker's cache. With few, all lists are wanted at once.
    const bool choose_first = !step_.ranks_by_head(workers_);
    Piece now;
    for (int idle = 0; now.head >= 0 || step_.workspace.finished_heads.load(std::memory_order_acquire) < heads;) {
      if (now.head < 0 && choose_first && choose_next()) continue;
      if (now.head < 0) now = take();
      if (now.head >= 0) {
        const Piece next = take();  // taken ahead, so that its first rows are asked for meanwhile
        attend_one(now, next);
        now = next;
        idle = 0;
        continue;
      }
      if (choose_next()) {
        idle = 0;
        continue;
      }
      if (++idle <= kLooks) continue;
      worker_.check();  // a head whose worker threw is never finished
      std::this_thread::yield();
    }
  }

 private:
  HeadFlow& flow(int h) const { return step_.workspace.flows[static_cast<std::size_t>(h)]; }

  // False when every head is taken.
  bool choose_next() {
    std::atomic<int>& next = step_.workspace.next_head;
    if (next.load(std::memory_order_relaxed) >= step_.query.shape.kv_heads) return false;
    const int h = next.fetch_add(1, std::memory_order_relaxed);
    if (h >= step_.query.shape.kv_heads) return false;
    choose_head(step_, h, rank_, workers_, clock_);
    publish(h, 0);
    return true;
  }

  // Opens the pieces of a round's list; an empty one is done at once.
  void publish(int h, int round) {
    HeadFlow& head = flow(h);
    const std::int64_t count = step_.head(h).count;
    if (report_ != nullptr) mark_report(step_, h, round, *report_);
    const int most = pieces_of(workers_);
    const std::int64_t even = (count + most - 1) / most;
    head.piece_tokens = std::max(kPieceTokens, (even + kPieceGrain - 1) / kPieceGrain * kPieceGrain);
    head.pieces[round] = static_cast<int>((count + head.piece_tokens - 1) / head.piece_tokens);
    if (head.pieces[round] == 0) return advance(h, round);
    head.done.store(0, std::memory_order_relaxed);
    head.next.store(round * HeadFlow::kRoundPieces, std::memory_order_relaxed);
    head.round.store(round, std::memory_order_release);
  }

  // The next piece of the head that this worker took from last, else of some other head.
  Piece take() {
    const int heads = step_.query.shape.kv_heads;
    for (int i = 0; i < heads; ++i) {
      const int h = (last_ + i) % heads;
      const Piece piece = take_from(h);
      if (piece.head < 0) continue;
      last_ = h;
      return piece;
    }
    return {};
  }

  Piece take_from(int h) const {
    HeadFlow& head = flow(h);
    for (;;) {
      const int round = head.round.load(std::memory_order_acquire);
      if (round < 0 || round >= HeadFlow::kFinished) return {};
      // Read before taking: a number at or behind the end of the round that was seen stands for no piece.
      int piece = head.next.load(std::memory_order_relaxed);
      if (piece / HeadFlow::kRoundPieces != round || piece % HeadFlow::kRoundPieces >= head.pieces[round]) return {};
      if (head.next.compare_exchange_weak(piece, piece + 1, std::memory_order_acq_rel)) {
        return {h, round, piece % HeadFlow::kRoundPieces};
      }
    }
  }

  TokenList tokens_of(const Piece& piece) const {
    const HeadFlow& head = flow(piece.head);
    const std::int64_t first = piece.number * head.piece_tokens;
    return list_of(step_, piece.head, first, std::min(head.piece_tokens, step_.head(piece.head).count - first));
  }

  void attend_one(const Piece& piece, const Piece& next) {
    const auto start = Clock::now();
    HeadFlow& head = flow(piece.head);
    TokenList coming;
    if (next.head >= 0) coming = tokens_of(next);
    const Neighbours around{asked_, next.head >= 0 ? &coming : nullptr, next.head};
    attend_piece(step_, piece.head, piece.round, tokens_of(piece), piece.number * head.piece_tokens,
                 piece.round * pieces_of(workers_) + piece.number, around);
    asked_ = next.head >= 0;
    const bool last = head.done.fetch_add(1, std::memory_order_acq_rel) + 1 == head.pieces[piece.round];
    clock_.attend += std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    if (last) advance(piece.head, piece.round);
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
  int last_;            // head of the piece that was taken last: each worker begins at another
  bool asked_ = false;  // for the first rows of the next piece
};

}  // namespace

void flow_phase(Worker& worker, const SparseStep& step, StepReport* report) { Flow(worker, step, report).run(); }

}  // namespace tactic
