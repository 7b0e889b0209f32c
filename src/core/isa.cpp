#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "core/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tactic {
namespace {

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know f16c: bit 29 of ECX of CPUID leaf 1.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

Isa from_environment() {
  const char* wanted = std::getenv("TACTIC_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Isa isa : {Isa::avx512, Isa::avx2}) {
      if (supported(isa)) return isa;
    }
    return Isa::baseline;
  }
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::string(wanted) != name_of(isa)) continue;
    if (supported(isa)) return isa;
    throw Error(Status::invalid_argument, std::string("TACTIC_ISA=") + wanted + ": this processor lacks it; unset TACTIC_ISA");
  }
  throw Error(Status::invalid_argument,
              std::string("TACTIC_ISA=") + wanted + " is not an instruction set; use baseline, avx2 or avx512");
}

std::atomic<int> chosen{-1};

}  // namespace

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:  // what Highway's AVX3 target is compiled for
      return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && has_f16c();
    case Isa::baseline:
      return true;
  }
  return false;
#else
  return isa == Isa::baseline;
#endif
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      return "baseline";
  }
  return "?";
}

Isa active_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(from_environment());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void force_isa(Isa isa) {
  if (!supported(isa)) throw Error(Status::unsupported, std::string("this processor has no ") + name_of(isa));
  chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace tactic
