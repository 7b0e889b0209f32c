// The attention kernels for K and V in fp8 e4m3: arithmetic in f16, which holds every e4m3 value.
#include "attend/cuda_kernel.cuh"
#include "attend/cuda_launch.h"

namespace tactic::cuda {
namespace {

constexpr int kStages = 2;

template <int kDim>
AttendKernel one_tile() {
  return {attend_kernel<MatrixMath<__half, true, kDim, 1>, kStages>, kStages};
}
template <int kDim>
AttendKernel kernel_of(int tiles) {
  if (tiles == 1) return one_tile<kDim>();
  return {attend_kernel<MatrixMath<__half, true, kDim, 2>, kStages>, kStages};
}

}  // namespace

AttendKernel fp8_kernel(int dim, int tiles) {
  if (dim == 64) return kernel_of<64>(tiles);
  if (dim == 128) return kernel_of<128>(tiles);
  if (dim == 256) return kernel_of<256>(tiles);
  if (dim == 80 && tiles == 1) return one_tile<80>();
  if (dim == 96 && tiles == 1) return one_tile<96>();
  return {};
}

}  // namespace tactic::cuda
