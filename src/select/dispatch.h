// Picks the copy of a kernel for the active instruction set. For files compiled per target by Highway's foreach_target; use
// inside #if HWY_ONCE, from namespace tactic.
#pragma once

#include "core/isa.h"
#include "hwy/highway.h"

#if HWY_ARCH_X86 && (HWY_TARGETS & HWY_AVX3) && (HWY_TARGETS & HWY_AVX2)
#define TACTIC_PICK(kernel)                                          \
  (::tactic::active_isa() == ::tactic::Isa::avx512 ? &N_AVX3::kernel \
   : ::tactic::active_isa() == ::tactic::Isa::avx2 ? &N_AVX2::kernel \
                                                   : &HWY_STATIC_DISPATCH(kernel))
#else  // one target: not x86, or a compiler told to build for AVX-512 alone
#define TACTIC_PICK(kernel) (&HWY_STATIC_DISPATCH(kernel))
#endif
