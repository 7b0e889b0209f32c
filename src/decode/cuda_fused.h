// A step of one layer as one kernel, for launches whose thread blocks all run at once: see cuda_fused_kernel.cuh.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "core/options.h"

namespace tactic::cuda {

// Thread blocks a (sequence, KV head) that such a step takes; 0: it is not for this call. Depends on shapes, types, capacities,
// options and the device alone.
int fused_pieces(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options);

// The step with `pieces` blocks a (sequence, KV head), what fused_pieces() says. No scratch.
void fused_step(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const Options& options, int pieces,
                const DeviceOutput& output, std::uint32_t* status, DeviceStream stream);

}  // namespace tactic::cuda
