// The attention kernel for types and dims that no other one has.
#include "attend/cuda_any_math.cuh"
#include "attend/cuda_kernel.cuh"
#include "attend/cuda_launch.h"

namespace tactic::cuda {

AttendKernel any_kernel() { return {attend_kernel<AnyMath, 1>, 1, true}; }

}  // namespace tactic::cuda
