// One decode step of one layer on the device: select, attend, merge, on the caller's stream with the caller's scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"
#include "core/options.h"

namespace tactic::cuda {

// Bytes of scratch of decode_step, the lists included. One scratch serves all layers of a stream, one after the other, dense and
// sparse. Zeroed once when allocated.
std::size_t decode_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex* index, const Options& options);

// A sparse step is one kernel where that is faster and possible (cuda_fused.h), else two; tests and benchmarks may say which.
enum class StepKernels { automatic, one, two };

// Attention of one query row per sequence. index null, method full or mass 1: dense. Captures into a graph and replays while
// lengths, lists, pages and the index' contents change. status [S] device words (device_status).
void decode_step(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex* index, const Options& options,
                 const DeviceOutput& output, std::uint32_t* status, void* scratch, DeviceStream stream,
                 StepKernels kernels = StepKernels::automatic);

}  // namespace tactic::cuda
