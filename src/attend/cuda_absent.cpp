// A build without CUDA.
#include "attend/cuda.h"
#include "core/error.h"

namespace tactic::cuda {

std::size_t attend_scratch_bytes(const DeviceQuery&, const DeviceKv&, const DeviceLists&) { throw_absent(); }
void attend_lists(const DeviceQuery&, const DeviceKv&, const DeviceIndex&, const DeviceLists&, const DeviceOutput&,
                  std::uint32_t*, void*, DeviceStream) {
  throw_absent();
}
std::size_t attend_dense_scratch_bytes(const DeviceQuery&, const DeviceKv&) { throw_absent(); }
void attend_dense(const DeviceQuery&, const DeviceKv&, const DeviceOutput&, std::uint32_t*, void*, DeviceStream) {
  throw_absent();
}

}  // namespace tactic::cuda
