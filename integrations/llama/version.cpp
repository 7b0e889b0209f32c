// The allow-list of ggml versions and a look at the running one.
#include "version.h"

#include "engine.h"

namespace tactic::llama {
namespace {

// Versions whose internal headers this source was compiled against and whose engine ran the tests.
const char* const kKnown[] = {"0.25.3"};

}  // namespace

const char* refusal(const std::string& ggml_version) {
  // "0.25.3-dirty" and "0.25.3+build" are local builds of 0.25.3.
  const std::string release = ggml_version.substr(0, ggml_version.find_first_of("-+"));
  for (const char* known : kKnown) {
    if (release == known) return nullptr;
  }
  return "this build knows ggml 0.25.3; the engine runs its own attention. Use a matching llama.cpp or rebuild the "
         "plug-in "
         "with its headers";
}

const char* layout_mismatch() {
  if (!ops().complete()) return "the engine lacks an operation that the plug-in needs (FLASH_ATTN_EXT, SET_ROWS, CUSTOM)";
  constexpr std::size_t kObject = 32;  // ggml_object, private to ggml.c: offset, size, next, type
  if (ggml_tensor_overhead() != kObject + sizeof(ggml_tensor)) return "ggml_tensor has another size than at compile time";
  return nullptr;
}

}  // namespace tactic::llama
