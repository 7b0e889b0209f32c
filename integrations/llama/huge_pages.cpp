#include "huge_pages.h"

#include <sys/mman.h>

#include <cstdint>

namespace tactic::llama {

bool collapse_into_huge_pages(void* data, std::size_t bytes) {
  constexpr std::uintptr_t kHuge = std::uintptr_t{2} << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (begin >= end) return false;
  void* const first = reinterpret_cast<void*>(begin);  // NOLINT(performance-no-int-to-ptr): rounded up inside the buffer
  if (madvise(first, end - begin, MADV_HUGEPAGE) != 0) return false;
  return madvise(first, end - begin, kCollapse) == 0;
}

}  // namespace tactic::llama
