// Scratch of a decode step: everything that phases of a step hand to each other. Grown before the team starts, kept after.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "decode/decode.h"
#include "select/select.h"

namespace tactic {

// Partial results of `slots` workers or pieces for `heads` query heads.
struct PartialSet {
  Buffer<float> output;   // [slots, heads, v_head_dim]
  Buffer<float> maximum;  // [slots, heads]
  Buffer<float> sum;      // [slots, heads]
  int heads = 0;
  int v_head_dim = 0;

  void reserve(int slots, int head_count, int dim);
  // The partial of one slot, from query head `head` on.
  Partial at(int slot, int head = 0);
};

// What the phases know of one KV head.
struct HeadWork {
  Buffer<float> logits;         // [group, stride] of centroids
  Buffer<float> mass;           // [group, stride] estimated
  Buffer<float> ripple;         // [group, stride] loss of representing a cluster (goal error)
  Buffer<float> exact;          // [group, stride] of chosen clusters
  Buffer<float> half;           // [group, parts] half variance per unit of spread
  Buffer<std::uint8_t> chosen;  // [stride]
  Buffer<std::int32_t> list;    // [count] chosen clusters: the first choice, then what verify added
  int first_choice = 0;
  int all_choices = 0;
  Buffer<std::uint64_t> bits;  // [words] tokens (`paper`)
  Buffer<std::int32_t> ids;    // [tokens] to attend
  std::int64_t count = 0;      // of ids
  bool dense = false;          // attends all its clustered tokens
  Buffer<float> token_logits;  // [group, token_stride] of the attended ids
  std::int64_t token_stride = 0;
  std::int64_t attended = 0;  // rows read, both rounds
  std::int64_t sampled = 0;   // K rows read by Algorithm 1 alone
  Buffer<std::int32_t> tail_list;
  Buffer<float> tail_weights;  // [group, tail_clusters]
  float reference[kMaxGroup] = {};
  float fixed[kMaxGroup] = {};
  float target[kMaxGroup] = {};
  float covered[kMaxGroup] = {};
  std::int64_t budget[kMaxGroup] = {};
  int tail_count = 0;
};

// Microseconds that one worker spent in the stages of a step.
struct alignas(64) WorkerClock {
  double rank = 0;      // centroids
  double fixed = 0;     // always-attended tokens
  double estimate = 0;  // masses, choice, verify
  double list = 0;      // lists of tokens
  double attend = 0;    // chosen tokens, merges, tail
};

// How far a KV head has come in a step; the rest of the team reads it while its worker goes on (see flow.cpp).
struct alignas(64) HeadFlow {
  std::atomic<int> round{-1};  // 0, 1: the list whose pieces may be taken; kFinished behind the last
  std::atomic<int> next{0};    // round * kRoundPieces + number of the next piece
  std::atomic<int> done{0};    // pieces of the round that are attended
  int pieces[2] = {0, 0};      // of the rounds' lists
  std::int64_t piece_tokens = 0;
  static constexpr int kFinished = 2;
  static constexpr int kRoundPieces = 1 << 16;
};

// Pieces that a KV head's list is cut into: two for each worker, so that the last ones even out; more would pay more merges.
constexpr int kMostPieces = 256;
inline int pieces_of(int workers) { return workers == 1 ? 1 : std::min(2 * workers, kMostPieces); }

class Workspace {
 public:
  std::vector<HeadWork> heads;         // [kv_heads]
  std::vector<SelectScratch> scratch;  // [workers]
  std::vector<WorkerClock> clocks;     // [workers]
  PartialSet fixed;                    // slots: workers; heads: q_heads
  PartialSet pieces;                   // slots: two rounds of pieces_of(workers); heads: q_heads
  PartialSet result;                   // one slot, q_heads
  std::vector<HeadFlow> flows;         // [kv_heads]
  std::atomic<int> next_column{0};     // task of rank_phase
  std::atomic<int> next_head{0};       // to choose
  std::atomic<int> finished_heads{0};

  void reserve(int workers, const Query& query, const KvView& kv, const LayerIndex* index, const Options& options);
};

}  // namespace tactic
