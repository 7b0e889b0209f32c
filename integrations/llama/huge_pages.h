// Asks the kernel to keep a cache in huge pages: gathering rows out of 4 KB pages misses the TLB at every row.
#pragma once

#include <cstddef>

namespace tactic::llama {

// Collapses the 2 MB pages inside [data, data + bytes) now where the kernel can (Linux 6.1), else marks them for it. Contents
// stay. Costs a copy of what is filled, once. A refusal changes nothing. Returns whether the pages were collapsed.
bool collapse_into_huge_pages(void* data, std::size_t bytes);

}  // namespace tactic::llama
