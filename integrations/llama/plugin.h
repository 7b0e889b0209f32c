// The plug-in as the engine's registry sees it.
#pragma once

#include "control.h"

namespace tactic::llama {

const tactic_llama_control* control();

}  // namespace tactic::llama
