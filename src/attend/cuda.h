// Attention on the device: over the lists that select/ left, and dense.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace tactic::cuda {

// Bytes of scratch for either call; depends on shape, S and max_length only. Zero it once when it is allocated: every call leaves
// it zero again. Calls that overlap must not share it.
std::size_t attend_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceLists& lists);

// Always-attended tokens, listed tokens, represented clusters; merged, normalised, written to output. status [S].
// Captures into a graph; starts before `select` has ended where the device has programmatic dependent launch.
void attend_lists(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const DeviceLists& lists,
                  const DeviceOutput& output, std::uint32_t* status, void* scratch, DeviceStream stream);

// All tokens of every sequence.
std::size_t attend_dense_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv);
void attend_dense(const DeviceQuery& query, const DeviceKv& kv, const DeviceOutput& output, std::uint32_t* status, void* scratch,
                  DeviceStream stream);

}  // namespace tactic::cuda
