// The attention kernels for K and V in f16.
#include "attend/cuda_kernels_of_type.cuh"

namespace tactic::cuda {

AttendKernel f16_kernel(int dim, int tiles) { return MatrixKernels<__half, false>::of(dim, tiles); }

}  // namespace tactic::cuda
