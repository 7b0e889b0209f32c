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

// Fills the lists. status [S].
void select(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options,
            const DeviceLists& lists, std::uint32_t* status, void* scratch, DeviceStream stream);

}  // namespace tactic::cuda
