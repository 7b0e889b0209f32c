// Clustering on the device: from the keys of a range of tokens to columns of a DeviceIndex.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cluster/cluster.h"
#include "core/device.h"

namespace tactic::cuda {

// Tokens [first, last) of one sequence in one layer become columns behind those that its slot of `index` holds (or the first
// ones); counts, range and parts are written last, in stream order. Where that cannot be (NaN or infinity in K or V, a block id
// outside the cache, an index without room, a range that does not go on from the slot's) the sequence's status word says so and
// the slot keeps what it held; without `append` it is empty then.
struct ClusterTask {
  int sequence = 0;  // of kv and index
  std::int32_t first = 0;
  std::int32_t last = 0;
  bool append = false;    // else the slot is emptied first
  bool new_part = false;  // with append: the clusters make a part of their own (where one is left); else they join the last part
  // [kv_heads, head_dim, head_dim] f32 lower triangular L with y = L^T k (MetricSpace's factor), on the device; null: L2
  const float* factor = nullptr;
};

std::size_t cluster_scratch_bytes(const DeviceKv& kv, const DeviceIndex& index, std::int32_t max_tokens,
                                  const ClusterOptions& options);
void cluster(const DeviceKv& kv, const DeviceIndex& index, const ClusterTask& task, const ClusterOptions& options,
             std::uint32_t* status, void* scratch, DeviceStream stream);

// The same for many at once (layers, sequences), which fills the device better: every launch works on as many as scratch_bytes
// hold. All of one shape, kv_heads and centroid type; lengths may differ.
struct ClusterJob {
  DeviceKv kv;
  DeviceIndex index;
  ClusterTask task;
  std::uint32_t* status = nullptr;  // [S]
};
void cluster(std::span<const ClusterJob> jobs, const ClusterOptions& options, void* scratch, std::size_t scratch_bytes,
             DeviceStream stream);

// After cluster() on the same scratch, waits for the stream: throws Error(non_finite) naming the token and KV head when the last
// launch (the last job of a call) met NaN or infinity in K or V.
void throw_cluster_fault(const ClusterJob& job, const ClusterOptions& options, const void* scratch, DeviceStream stream);

// For tests: the kernels that every device has, also where there are faster ones.
void force_common_clustering(bool force);

}  // namespace tactic::cuda
