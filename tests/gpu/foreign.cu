// Built for an architecture that the machine's device is not of (scripts/test-gpu does so): the check must say so, in one line.
#include <cstdio>
#include <cstring>

#include "core/device_check.h"
#include "core/error.h"

int main() {
  try {
    tactic::cuda::require_device(-1);
  } catch (const tactic::Error& error) {
    std::printf("%s\n", error.what());
    const bool said = std::strstr(error.what(), "for which this library has no code") != nullptr;
    return error.status() == tactic::Status::unsupported && said && std::strchr(error.what(), '\n') == nullptr ? 0 : 1;
  }
  std::printf("no error\n");
  return 1;
}
