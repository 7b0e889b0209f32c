// Attention on the CPU: compiles the kernels for every instruction set and picks one when called.
#include "attend/attend.h"
#include "attend/rows.h"
#include "core/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attend/cpu.cpp"
// The order of these matters.
// clang-format off
#include "hwy/foreach_target.h"  // compiles the rest of this file once per further target
#include "hwy/highway.h"
#include "attend/walk-inl.h"
// clang-format on

#ifndef TACTIC_ATTEND_KERNELS
#define TACTIC_ATTEND_KERNELS
namespace tactic::attend {

// The functions of attend.h on one instruction set.
struct Kernels {
  decltype(&tactic::attend_list) attend_list;
  decltype(&tactic::attend_all) attend_all;
  decltype(&tactic::score_list) score_list;
};

}  // namespace tactic::attend
#endif

HWY_BEFORE_NAMESPACE();
namespace tactic::attend::HWY_NAMESPACE {

extern constexpr Kernels kKernels{attend_group, attend_heads, score_group};

}  // namespace tactic::attend::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tactic {
namespace {

const attend::Kernels& kernels() {
  switch (active_isa()) {
#if (HWY_TARGETS & HWY_AVX3)
    case Isa::avx512:
      return attend::N_AVX3::kKernels;
#endif
#if (HWY_TARGETS & HWY_AVX2)
    case Isa::avx2:
      return attend::N_AVX2::kKernels;
#endif
    default:
      return attend::HWY_NAMESPACE::kKernels;  // the target the whole library is compiled for
  }
}

}  // namespace

void attend_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, const Partial& out, float* logits,
                 std::int64_t logit_stride, const Neighbours& around) {
  kernels().attend_list(query, kv, kv_head, list, out, logits, logit_stride, around);
}

void attend_all(const Query& query, const KvView& kv, const TokenList& list, const Partial& out) {
  kernels().attend_all(query, kv, list, out);
}

void score_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, float* logits,
                std::int64_t logit_stride) {
  kernels().score_list(query, kv, kv_head, list, logits, logit_stride);
}

}  // namespace tactic
#endif  // HWY_ONCE
