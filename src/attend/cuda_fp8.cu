// The attention kernels for K and V in fp8 e4m3: arithmetic in f16, which holds every e4m3 value.
#include "attend/cuda_kernels_of_type.cuh"

namespace tactic::cuda {

AttendKernel fp8_kernel(int dim, int tiles) { return MatrixKernels<__half, true>::of(dim, tiles); }

}  // namespace tactic::cuda
