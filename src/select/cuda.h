// Choosing on the device: centroid scores, estimate by spread, choice, lists (K1 of a step).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"
#include "core/options.h"

namespace tactic::cuda {

// Bytes of the lists of one layer and of scratch; they depend on capacities only. The lists of one layer may serve all layers of
// a step: attend has read them before the next layer's select writes them.
std::size_t select_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options);
// The lists inside such scratch (device pointers; no device access).
DeviceLists select_lists(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
                         void* scratch);

// Fills the lists. status [S]. Goal error: one kernel; goal mass and `paper`: further ones behind it. Of the options,
//   promise        is refused
//   verify         has no effect (the C API refuses it): docs/gpu.md says what it would save and what it would cost
//   tail_clusters  with goal error is 0 or not 0: what is worth its mean V is represented, without a limit (a limit needs a sort)
// Throws Error(unsupported) where the columns of a piece do not fit into shared memory, with a group of 4: above about 42000
// clusters a KV head on sm_90 and 2000 on sm_89; `paper`: above 32000 and 10000.
void select(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
            const DeviceLists& lists, std::uint32_t* status, void* scratch, DeviceStream stream);

}  // namespace tactic::cuda
