// Replaced functions of devices and backends, and where the originals are.
#include "interpose.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "engine.h"
#include "runner.h"

namespace tactic::llama {
namespace {

using InitBackend = ggml_backend_t (*)(ggml_backend_dev_t, const char*);
using FreeBackend = void (*)(ggml_backend_t);

struct Hooks {
  struct Backend {
    std::unique_ptr<Runner> runner;
    FreeBackend free = nullptr;
  };
  std::mutex mutex;
  std::unordered_map<ggml_backend_dev_t, InitBackend> devices;
  std::unordered_map<ggml_backend_t, Backend> backends;
};

Hooks& hooks() {
  static auto* const all = new Hooks;  // never destroyed: backends may be freed while the process ends
  return *all;
}

ggml_status hooked_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  Runner* runner = nullptr;
  {
    const std::lock_guard lock(hooks().mutex);
    runner = hooks().backends.at(backend).runner.get();
  }
  return runner->compute(backend, graph);
}

void hooked_free(ggml_backend_t backend) {
  FreeBackend original = nullptr;
  {
    const std::lock_guard lock(hooks().mutex);
    const auto found = hooks().backends.find(backend);
    original = found->second.free;
    hooks().backends.erase(found);
  }
  original(backend);
}

ggml_backend_t hooked_init(ggml_backend_dev_t device, const char* parameters) {
  InitBackend original = nullptr;
  {
    const std::lock_guard lock(hooks().mutex);
    original = hooks().devices.at(device);
  }
  const ggml_backend_t backend = original(device, parameters);
  if (backend == nullptr || backend->iface.graph_compute == hooked_compute) return backend;
  const std::lock_guard lock(hooks().mutex);
  hooks().backends[backend] = {std::make_unique<Runner>(backend->iface.graph_compute), backend->iface.free};
  backend->iface.graph_compute = hooked_compute;
  backend->iface.free = hooked_free;
  return backend;
}

}  // namespace

int hook_devices() {
  int hooked = 0;
  for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
    const ggml_backend_dev_t device = ggml_backend_dev_get(i);
    if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) continue;
    ++hooked;
    const std::lock_guard lock(hooks().mutex);
    if (device->iface.init_backend == hooked_init) continue;
    hooks().devices[device] = device->iface.init_backend;
    device->iface.init_backend = hooked_init;
  }
  return hooked;
}

}  // namespace tactic::llama
