// A build without CUDA.
#include "cluster/cuda.h"
#include "cluster/cuda_metric.h"
#include "core/error.h"

namespace tactic::cuda {

std::size_t cluster_scratch_bytes(const DeviceKv&, const DeviceIndex&, std::int32_t, const ClusterOptions&) { throw_absent(); }
void cluster(const DeviceKv&, const DeviceIndex&, const ClusterTask&, const ClusterOptions&, std::uint32_t*, void*,
             DeviceStream) {
  throw_absent();
}
void cluster(std::span<const ClusterJob>, const ClusterOptions&, void*, std::size_t, DeviceStream) { throw_absent(); }
void throw_cluster_fault(const ClusterJob&, const ClusterOptions&, const void*, DeviceStream) { throw_absent(); }
void force_common_clustering(bool) { throw_absent(); }

std::size_t query_ring_bytes(int, const Shape&) { throw_absent(); }
QueryRing make_query_ring(int, const Shape&, void*) { throw_absent(); }
void clear_query_ring(const QueryRing&, int, DeviceStream) { throw_absent(); }
void observe_step(const QueryRing&, const DeviceQuery&, const std::int32_t*, int, DeviceStream) { throw_absent(); }
void observe_prompt(const QueryRing&, const Shape&, int, const void*, DeviceType, std::int64_t, std::int32_t, std::int32_t,
                    DeviceStream) {
  throw_absent();
}
std::vector<float> turn_table(const Rotary&, int) { throw_absent(); }
void make_factors(const QueryRing&, const Shape&, int, Metric, const TurnTable&, float, float*, DeviceStream) { throw_absent(); }

}  // namespace tactic::cuda
