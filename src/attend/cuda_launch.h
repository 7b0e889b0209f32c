// From the shapes and types of a call to one of the kernels.
#pragma once

#include "attend/cuda_args.h"

namespace tactic::cuda {

struct AttendKernel {
  void (*kernel)(AttendArgs) = nullptr;
  int stages = 0;       // of a warp's ring
  int warps = 0;        // of a thread block, at most
  int entry_bytes = 0;  // Ring's, of a warp
  bool any = false;     // AnyMath, which needs memory of its own
};

// On tensor cores: head_dim = v_head_dim, tiles of 8 heads: 1 or 2. Null where there is none.
AttendKernel bf16_kernel(int dim, int tiles);
AttendKernel f16_kernel(int dim, int tiles);
AttendKernel fp8_kernel(int dim, int tiles);
// For all else.
AttendKernel any_kernel();

// What a kernel of decode/ is given that attends as well: no lists, no scratch. Throws as attend_lists() does.
AttendArgs attend_args(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, const DeviceOutput& output,
                       std::uint32_t* status);

}  // namespace tactic::cuda
