// Which instruction set the CPU kernels run on.
//
// A kernel file is compiled once per target by Highway's foreach_target, each copy in its own namespace (N_AVX3, N_AVX2,
// or the platform's baseline: one lane on x86); Highway's headers alone are used, so nothing of it has to be shipped. The file
// exposes one table of function pointers per target and picks with active_isa(). See attend/cpu.cpp.
#pragma once

#include <cstdint>

namespace tactic {

enum class Isa : std::int32_t { baseline = 0, avx2 = 1, avx512 = 2 };

// The best that this processor and this build have, or what TACTIC_ISA (baseline, avx2, avx512) asks for, read once. An ISA
// that the processor lacks or a name that does not exist throws Error(invalid_argument) on the first call.
Isa active_isa();
const char* name_of(Isa isa);

// For tests: replaces the choice; throws Error(unsupported) if the processor lacks it.
void force_isa(Isa isa);
bool supported(Isa isa);

}  // namespace tactic
