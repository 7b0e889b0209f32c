// A build without CUDA.
#include "core/device_check.h"
#include "core/error.h"

namespace tactic::cuda {

void require_device(int) { throw_absent(); }

}  // namespace tactic::cuda
