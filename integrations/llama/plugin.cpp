// The door: ggml_backend_init, called by the engine's loader. Registers "Tactic", a registry without devices, and hooks the
// CPU device; refuses an engine it does not know, which then runs stock.
#include "plugin.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/isa.h"
#include "engine.h"
#include "interpose.h"
#include "shared.h"
#include "version.h"

namespace tactic::llama {
namespace {

const char* registry_name(ggml_backend_reg_t) { return "Tactic"; }
std::size_t registry_devices(ggml_backend_reg_t) { return 0; }
ggml_backend_dev_t registry_device(ggml_backend_reg_t, std::size_t) { return nullptr; }
void* registry_function(ggml_backend_reg_t, const char* name) {
  return std::strcmp(name, TACTIC_LLAMA_CONTROL) == 0 ? reinterpret_cast<void*>(&control) : nullptr;
}

ggml_backend_reg g_registry = {
    GGML_BACKEND_API_VERSION, {registry_name, registry_devices, registry_device, registry_function}, nullptr};

const char* reason_to_refuse() {
  const char* disabled = std::getenv("TACTIC_DISABLE");
  if (disabled != nullptr && *disabled != '\0' && std::strcmp(disabled, "0") != 0) return "TACTIC_DISABLE is set";
  if (const char* reason = refusal(ggml_version())) return reason;
  if (const char* reason = layout_mismatch()) return reason;
  return nullptr;
}

void read_environment() {
  static bool done = false;
  if (done) return;  // a second load_all must not undo what the program set meanwhile
  done = true;
  std::vector<std::string> complaints;
  Shared::instance().set(std::make_shared<Settings>(Settings::from_environment(complaints)));
  for (const std::string& complaint : complaints) log_line("%s", complaint.c_str());
}

ggml_backend_reg_t initialise() {
  if (const char* reason = reason_to_refuse()) {
    log_line("not used (ggml %s): %s", ggml_version(), reason);
    return nullptr;
  }
  read_environment();
  active_isa();  // a wrong TACTIC_ISA must end here, not inside a graph
  if (hook_devices() == 0) {
    log_line("not used: no CPU device is registered; load the engine's own backends first");
    return nullptr;
  }
  if (log_level() >= 1) {
    log_line("in ggml %s: method %s, mass %s, %s", ggml_version(), Shared::instance().settings()->get("method")->c_str(),
             Shared::instance().settings()->get("mass")->c_str(), name_of(active_isa()));
  }
  return &g_registry;
}

}  // namespace
}  // namespace tactic::llama

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
  try {
    return tactic::llama::initialise();
  } catch (const std::exception& error) {
    tactic::llama::log_line("not used: %s", error.what());
    return nullptr;
  }
}
