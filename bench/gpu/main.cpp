// bench_gpu: measures parts of Tactic and the limits of the memory on this GPU; scripts beside it add the peers.
#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>

#include "limits.h"
#include "session.h"
#include "settings.h"

namespace tactic::bench::gpu {
void measure_limits(const Session& s) {
  s.results.add(launch_limit(s.timer));
  const Pool pool(s.settings.pool_gigabytes * 1e9);
  for (const Heads& heads : s.settings.shapes) {
    for (const Cell& cell : s.settings.cells) {
      Case c = pool.cut(heads, cell);
      s.results.add(stream_limit(s.timer, c));
      for (const double share : s.settings.shares) s.results.add(gather_limit(s.timer, c, share));
    }
  }
}

namespace {

int run(int argc, char** argv) {
  const Settings settings = parse_settings(argc, argv);
  const std::map<std::string, std::function<void(const Session&)>> parts = {
      {"limits", measure_limits},         {"synthetic", describe_synthetic}, {"layers", measure_layers},
      {"clustering", measure_clustering}, {"union", measure_union},          {"end-to-end", measure_end_to_end}};
  if (settings.parts.empty()) throw std::runtime_error("no part named\n" + usage());
  for (const std::string& part : settings.parts) {
    if (parts.find(part) == parts.end()) throw std::runtime_error(part + ": unknown part\n" + usage());
  }
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "no usable GPU");
  std::printf("# %s, %d multiprocessors, L2 %d MB\n", device.name, device.multiProcessorCount, device.l2CacheSize >> 20);
  Timer timer(settings.repetitions);
  Results results(settings.csv);
  for (const std::string& part : settings.parts) parts.at(part)({settings, timer, results});
  return 0;
}

}  // namespace
}  // namespace tactic::bench::gpu

int main(int argc, char** argv) {
  try {
    return tactic::bench::gpu::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_gpu: %s\n", error.what());
    return 1;
  }
}
