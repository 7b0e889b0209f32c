// Scratch of a decode step: everything that phases of a step hand to each other. Grown before the team starts, kept after.
#pragma once

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
  Buffer<std::uint64_t> bits;  // [words] tokens
  Buffer<std::int32_t> ids;    // [tokens] to attend, ascending
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

// Microseconds that one worker spent in the two parts of a phase, to split the phase's wall time by.
struct TwoParts {
  double first = 0;
  double second = 0;
};
struct alignas(64) WorkerClock {
  TwoParts rank;    // centroids; always-attended tokens
  TwoParts choose;  // masses and choice; lists of tokens
};

// The phases that hand out KV heads or columns one by one.
enum class Task { rank, choose, verify, finish, count };
struct alignas(64) TaskCounter {
  std::atomic<int> next{0};
};

class Workspace {
 public:
  std::vector<HeadWork> heads;         // [kv_heads]
  std::vector<SelectScratch> scratch;  // [workers]
  std::vector<WorkerClock> clocks;     // [workers]
  PartialSet fixed;                    // slots: workers; heads: q_heads
  PartialSet pieces;                   // slots: workers; heads: q_heads; a worker's piece of a KV head's list
  PartialSet result;                   // one slot, q_heads
  TaskCounter tasks[static_cast<int>(Task::count)];

  int take(Task task) { return tasks[static_cast<int>(task)].next.fetch_add(1, std::memory_order_relaxed); }

  void reserve(int workers, const Query& query, const KvView& kv, const LayerIndex* index, const Options& options);
};

}  // namespace tactic
