// Whether the machine has a CUDA device that this library can use.
#pragma once

namespace tactic::cuda {

// Throws Error(unsupported) that says what is missing. device -1: the current one; else it becomes the current one.
void require_device(int device);

}  // namespace tactic::cuda
