// A build without CUDA.
#include "core/error.h"
#include "select/cuda.h"

namespace tactic::cuda {

std::size_t select_scratch_bytes(const DeviceQuery&, const DeviceKv&, const DeviceIndex&, const Options&) { throw_absent(); }
DeviceLists select_lists(const DeviceQuery&, const DeviceKv&, const DeviceIndex&, const Options&, void*) { throw_absent(); }
void select(const DeviceQuery&, const DeviceKv&, const DeviceIndex&, const Options&, const DeviceLists&, std::uint32_t*, void*,
            DeviceStream) {
  throw_absent();
}

}  // namespace tactic::cuda
