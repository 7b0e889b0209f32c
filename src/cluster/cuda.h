// Clustering on the device: from the keys of a range of tokens to columns of a DeviceIndex.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cluster/cluster.h"
#include "core/device.h"

namespace tactic::cuda {

// Tokens [first, last) of one sequence in one layer become columns behind those that its slot of `index` holds (or the first
// ones); counts, range and parts are written last, in stream order.
struct ClusterTask {
  int sequence = 0;  // of kv and index
  std::int32_t first = 0;
  std::int32_t last = 0;
  bool append = false;  // else the slot is emptied first
  // [kv_heads, head_dim, head_dim] f32 lower triangular L with y = L^T k (MetricSpace's factor), on the device; null: L2
  const float* factor = nullptr;
};

std::size_t cluster_scratch_bytes(const DeviceKv& kv, const DeviceIndex& index, std::int32_t max_tokens,
                                  const ClusterOptions& options);
void cluster(const DeviceKv& kv, const DeviceIndex& index, const ClusterTask& task, const ClusterOptions& options,
             std::uint32_t* status, void* scratch, DeviceStream stream);

}  // namespace tactic::cuda
