// Counts calls of operator new and lets one of them fail: include in one file of a test program, which then replaces the global
// operators.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace tactic::test {

inline std::atomic<std::int64_t> news{0};
inline std::atomic<std::int64_t> failing_new{-1};  // its number, as `news` counts; -1: none

// While it lives, the allocation with this number (0: the next) fails; others succeed.
class FailNew {
 public:
  explicit FailNew(std::int64_t number) { failing_new = news + number; }
  ~FailNew() { failing_new = -1; }
  FailNew(const FailNew&) = delete;
  FailNew& operator=(const FailNew&) = delete;
};

}  // namespace tactic::test

namespace tactic::test::detail {
inline void* counted_or_null(std::size_t size, std::size_t alignment) noexcept {
  if (news++ == failing_new) return nullptr;
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
inline void* counted(std::size_t size, std::size_t alignment) {
  void* p = counted_or_null(size, alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace tactic::test::detail

void* operator new(std::size_t size) { return tactic::test::detail::counted(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return tactic::test::detail::counted(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t a) {
  return tactic::test::detail::counted(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return tactic::test::detail::counted(size, static_cast<std::size_t>(a));
}
// std::stable_sort's buffer; AddressSanitizer's own would not match our delete.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return tactic::test::detail::counted_or_null(size, alignof(std::max_align_t));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
