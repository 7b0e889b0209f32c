// The ABI window: which engines this plug-in was built for and tested with.
#pragma once

#include <string>

namespace tactic::llama {

// Null when ggml of this version may be hooked, else why not: one line with the remedy.
// ggml-backend-impl.h is no stable interface and its API number no guard (fields moved under the same number), so versions
// are listed one by one.
const char* refusal(const std::string& ggml_version);

// Null when the running ggml's structures have the sizes and operations that this build was compiled with.
const char* layout_mismatch();

}  // namespace tactic::llama
