// The attention kernels for K and V in bf16.
#include "attend/cuda_kernels_of_type.cuh"

namespace tactic::cuda {

AttendKernel bf16_kernel(int dim, int tiles) { return MatrixKernels<__nv_bfloat16, false>::of(dim, tiles); }

}  // namespace tactic::cuda
