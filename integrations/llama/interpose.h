// Hooks in the engine's CPU device: every backend it makes from now on computes its graphs through a Runner.
#pragma once

namespace tactic::llama {

// Hooks the CPU devices that are registered; may be called again (the engine loads its backends more than once). Returns how
// many devices are hooked now.
int hook_devices();

}  // namespace tactic::llama
