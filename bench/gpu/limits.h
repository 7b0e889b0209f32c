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
// Of a kernel that does nothing, in a chain of such.
Row launch_limit(Timer& timer);

}  // namespace tactic::bench::gpu
