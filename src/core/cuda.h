// Launching kernels: errors of the CUDA runtime, and kernels that may start before their predecessor has ended.
// Included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "core/error.h"

namespace tactic::cuda {

// Throws Error: out_of_memory for a failed allocation, unsupported where no device or kernel image fits, else internal.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that a later, sound call does not meet this error again
  Status status = Status::internal;
  if (error == cudaErrorMemoryAllocation) status = Status::out_of_memory;
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorNoKernelImageForDevice ||
      error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidDeviceFunction) {
    status = Status::unsupported;
  }
  throw Error(status, std::string(what) + ": " + cudaGetErrorString(error));
}

// Whether the kernels here were compiled for sm_90 or newer, so that they know thread-block clusters and dependent launch: a
// newer device also runs what was compiled for an older one. For the current device.
bool has_sm90_code();

struct Launch {
  dim3 grid = 1;
  dim3 block = 1;
  std::size_t shared_bytes = 0;
  int cluster = 1;         // thread blocks of a cluster, along x; above 1 only with has_sm90_code()
  bool dependent = false;  // programmatic dependent launch, where has_sm90_code(): the kernel calls wait_for_predecessor()
};

template <typename... Parameters, typename... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), const Launch& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (shape.dependent && has_sm90_code()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), what);
}

// Thread-block clusters of `shape` that the device runs at the same time; the grid does not count. The kernel's attributes are
// set.
template <typename... Parameters>
int clusters_at_once(void (*kernel)(Parameters...), const Launch& shape) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(shape.cluster);
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  check(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "clusters of thread blocks at once");
  return count;
}

#ifdef __CUDACC__
// All memory operations of the kernel before in the stream are visible behind it. No-ops below sm_90, where no kernel starts
// early.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel of the stream may be launched as soon as all thread blocks have said so or ended.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

}  // namespace tactic::cuda
