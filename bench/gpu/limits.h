// What the memory of this GPU allows: streams and gathers of the rows of a decode step, with nothing computed on them.
#pragma once

#include "cases.h"
#include "harness.h"

namespace tactic::bench::gpu {

// Best of a few ways to read all K and V of each layer in order.
Row stream_limit(Timer& timer, const Case& c);
// Best of a few ways to read the K and V rows of `share` of the tokens of each KV head, chosen at random, ascending.
Row gather_limit(Timer& timer, const Case& c, double share);
// The same for the rows of these numbers, [layers].
Row gather_limit(Timer& timer, const Case& c, const std::vector<std::vector<std::int32_t>>& rows);

// Rows of K and V that a step reads.
struct StepRows {
  std::vector<std::vector<std::int32_t>> numbers;  // [layers] of each (sequence, KV head) the listed ones, then the others
  std::vector<std::vector<std::int32_t>> first;    // [layers][slots + 1] in `numbers`
  std::vector<std::vector<std::int32_t>> listed;   // [layers][slots] how many
};
// What a step would take that reads these rows, and index_bytes a (sequence, KV head) at index [layers] before, as Tactic's one
// kernel does, in the same order and with the same exchanges between thread blocks, but computes nothing.
Row step_floor(Timer& timer, const Case& c, const StepRows& rows, const std::vector<const void*>& index, std::size_t index_bytes);

// Of a kernel that does nothing, in a chain of such.
Row launch_limit(Timer& timer);

}  // namespace tactic::bench::gpu
