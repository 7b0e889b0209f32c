// Owning buffers and views over the caller's rows.
#include "core/buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "core/view.h"

namespace tactic {
namespace {

TEST(Buffer, IsAlignedToCacheLines) {
  for (const std::size_t size : {1u, 3u, 100u, 4097u}) {
    const Buffer<float> buffer(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
  }
}

TEST(Buffer, KeepsItsContentsWhenItGrowsAndItsMemoryWhenItShrinks) {
  Buffer<int> buffer(10);
  std::iota(buffer.begin(), buffer.end(), 0);
  buffer.resize(1000);
  for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(buffer[i], static_cast<int>(i));
  const int* memory = buffer.data();
  buffer.resize(5);
  EXPECT_EQ(buffer.size(), 5u);
  buffer.resize(1000);
  EXPECT_EQ(buffer.data(), memory);
}

TEST(Buffer, CopiesAreIndependentAndMovesTakeTheMemory) {
  Buffer<int> a(3);
  a.fill(7);
  Buffer<int> b = a;
  b[0] = 1;
  EXPECT_EQ(a[0], 7);
  const int* memory = a.data();
  const Buffer<int> c = std::move(a);
  EXPECT_EQ(c.data(), memory);
  EXPECT_EQ(c.size(), 3u);
}

TEST(KvView, RowFollowsTheBlockTableAndAllStrides) {
  std::vector<std::byte> memory(4096);
  const std::int32_t blocks[] = {2, 0, 1};
  KvView kv;
  kv.k = {memory.data(), DType::f16, 64, 100, 10, 1000};
  kv.block_table = blocks;
  kv.block_size = 4;
  kv.tokens = 12;
  EXPECT_EQ(row(kv, kv.k, 0, 0) - memory.data(), 2000);
  EXPECT_EQ(row(kv, kv.k, 3, 1) - memory.data(), 2000 + 300 + 10);
  EXPECT_EQ(row(kv, kv.k, 5, 2) - memory.data(), 0 + 100 + 20);
  EXPECT_EQ(row(kv, kv.k, 11, 0) - memory.data(), 1000 + 300);
  kv.block_table = nullptr;
  EXPECT_EQ(row(kv, kv.k, 5, 2) - memory.data(), 500 + 20);
}

}  // namespace
}  // namespace tactic
