// The matrix kernels of one element type, in a file each (cuda_bf16.cu and others), since each takes minutes to compile.
#pragma once

#include "attend/cuda_kernel.cuh"
#include "attend/cuda_launch.h"

namespace tactic::cuda {

// T: of the arithmetic; kFp8: rows are fp8 e4m3.
template <typename T, bool kFp8>
struct MatrixKernels {
  static constexpr int kStages = 2;

  template <int kDim, int kTiles>
  static AttendKernel kernel() {
    return attend_kernel_of<MatrixMath<T, kFp8, kDim, kTiles>, kStages>();
  }
  template <int kDim>
  static AttendKernel of_tiles(int tiles) {
    if (tiles == 1) return kernel<kDim, 1>();
    return kernel<kDim, 2>();
  }
  static AttendKernel of(int dim, int tiles) {
    if (dim == 64) return of_tiles<64>(tiles);
    if (dim == 128) return of_tiles<128>(tiles);
    if (dim == 256) return of_tiles<256>(tiles);
    if (dim == 80 && tiles == 1) return kernel<80, 1>();
    if (dim == 96 && tiles == 1) return kernel<96, 1>();
    return {};
  }
};

}  // namespace tactic::cuda
