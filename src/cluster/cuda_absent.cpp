// A build without CUDA.
#include "cluster/cuda.h"
#include "core/error.h"

namespace tactic::cuda {

std::size_t cluster_scratch_bytes(const DeviceKv&, const DeviceIndex&, std::int32_t, const ClusterOptions&) { throw_absent(); }
void cluster(const DeviceKv&, const DeviceIndex&, const ClusterTask&, const ClusterOptions&, std::uint32_t*, void*,
             DeviceStream) {
  throw_absent();
}

}  // namespace tactic::cuda
