// The attention kernel for types and dims that no other one has.
#include "attend/cuda_any_math.cuh"
#include "attend/cuda_kernel.cuh"
#include "attend/cuda_launch.h"

namespace tactic::cuda {

AttendKernel any_kernel() {
  AttendKernel kernel = attend_kernel_of<AnyMath, 1>();
  kernel.any = true;
  return kernel;
}

}  // namespace tactic::cuda
