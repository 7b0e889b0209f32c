// The engine's state without flash attention: a hand-made state of two cells and one layer.
#include "state.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/error.h"

namespace tactic::program {
namespace {

using Bytes = std::vector<std::uint8_t>;

template <typename T>
void put(Bytes& bytes, T value) {
  bytes.resize(bytes.size() + sizeof value);
  std::memcpy(bytes.data() + bytes.size() - sizeof value, &value, sizeof value);
}

// Up to the values: the engine's mark of a saved sequence, one stream, two cells at positions 0 and 1, K of two elements a row.
Bytes beginning(std::uint32_t v_trans) {
  Bytes bytes;
  put(bytes, std::uint32_t{0xaf143cd8});
  put(bytes, std::int32_t{0});
  put(bytes, std::uint32_t{1});
  put(bytes, std::uint32_t{2});
  for (std::int32_t position : {0, 1}) {
    put(bytes, position);
    put(bytes, std::uint32_t{1});
    put(bytes, std::int32_t{0});
  }
  put(bytes, v_trans);
  put(bytes, std::uint32_t{1});
  put(bytes, std::int32_t{GGML_TYPE_F16});
  put(bytes, std::uint64_t{4});
  for (std::uint16_t k : {10, 11, 12, 13}) put(bytes, k);
  return bytes;
}

Bytes with_flash_attention() {
  Bytes bytes = beginning(0);
  put(bytes, std::int32_t{GGML_TYPE_F16});
  put(bytes, std::uint64_t{6});  // three elements a row
  for (std::uint16_t v : {20, 21, 22, 30, 31, 32}) put(bytes, v);
  return bytes;
}

TEST(State, GetsItsValuesTransposed) {
  Bytes expected = beginning(1);
  put(expected, std::int32_t{GGML_TYPE_F16});
  put(expected, std::uint32_t{2});
  put(expected, std::uint32_t{3});
  for (std::uint16_t v : {20, 30, 21, 31, 22, 32}) put(expected, v);
  EXPECT_EQ(transpose_v(with_flash_attention()), expected);
}

TEST(State, OfTwoCachesIsConvertedWhole) {
  Bytes two = with_flash_attention();
  const Bytes one = two;
  two.insert(two.end(), one.begin() + 8, one.end());
  Bytes expected = transpose_v(one);
  const Bytes half = expected;
  expected.insert(expected.end(), half.begin() + 8, half.end());
  EXPECT_EQ(transpose_v(two), expected);
}

TEST(State, CutAnywhereIsRefused) {
  const Bytes whole = with_flash_attention();
  for (std::size_t length = 1; length < whole.size(); ++length) {
    EXPECT_THROW(transpose_v(std::span(whole).first(length)), Error) << length;
  }
}

TEST(State, ThatIsTransposedAlreadyIsRefused) { EXPECT_THROW(transpose_v(transpose_v(with_flash_attention())), Error); }

}  // namespace
}  // namespace tactic::program
