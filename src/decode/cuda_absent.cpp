// A build without CUDA.
#include "core/error.h"
#include "decode/cuda.h"

namespace tactic::cuda {

std::size_t decode_scratch_bytes(const DeviceQuery&, const DeviceKv&, const DeviceIndex*, const Options&) { throw_absent(); }
void decode_step(const DeviceQuery&, const DeviceKv&, const DeviceIndex*, const Options&, const DeviceOutput&, std::uint32_t*,
                 void*, DeviceStream, StepKernels) {
  throw_absent();
}

}  // namespace tactic::cuda
