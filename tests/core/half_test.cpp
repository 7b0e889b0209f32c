// 16-bit floats: every value, every rounding border.
#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tactic {
namespace {

// A 16-bit float of `exponent_bits` and `mantissa_bits`, from its definition.
double value_of(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const double sign = (bits >> 15) != 0 ? -1 : 1;
  const int all_ones = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & all_ones;
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  const int bias = all_ones >> 1;
  if (exponent == all_ones) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

struct Format {
  const char* name;
  int exponent_bits;
  int mantissa_bits;
  float (*to_float)(std::uint16_t);
  std::uint16_t (*from_float)(float);
};

class Half : public testing::TestWithParam<Format> {};

TEST_P(Half, EveryPatternIsTheValueOfItsDefinition) {
  const Format& f = GetParam();
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = value_of(bits, f.exponent_bits, f.mantissa_bits);
    const float got = f.to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(got, expected) << bits;
      ASSERT_EQ(std::signbit(got), (bits >> 15) != 0) << bits;
    }
  }
}

TEST_P(Half, EveryValueComesBackAsItsPattern) {
  const Format& f = GetParam();
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f.to_float(static_cast<std::uint16_t>(bits));
    const std::uint16_t back = f.from_float(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(f.to_float(back))) << bits;
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

TEST_P(Half, RoundsToNearestAndTiesToEvenBetweenAllNeighbours) {
  const Format& f = GetParam();
  const std::uint32_t infinity = ((1u << f.exponent_bits) - 1) << f.mantissa_bits;
  for (std::uint32_t low = 0; low + 1 <= infinity; ++low) {
    // Beyond the largest finite value the next step would be the power of two that infinity stands for.
    const double a = value_of(low, f.exponent_bits, f.mantissa_bits);
    const double b =
        low + 1 < infinity ? value_of(low + 1, f.exponent_bits, f.mantissa_bits) : std::ldexp(1.0, 1 << (f.exponent_bits - 1));
    const auto middle = static_cast<float>((a + b) / 2);
    ASSERT_EQ(middle, (a + b) / 2) << low;  // exact in float: the test's own premise
    const std::uint32_t even = (low & 1) == 0 ? low : low + 1;
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const float side = sign != 0 ? -1.0f : 1.0f;
      ASSERT_EQ(f.from_float(side * middle), sign | even) << low;
      ASSERT_EQ(f.from_float(side * std::nextafter(middle, 0.0f)), sign | low) << low;
      ASSERT_EQ(f.from_float(side * std::nextafter(middle, std::numeric_limits<float>::infinity())), sign | (low + 1)) << low;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Half,
                         testing::Values(Format{"f16", 5, 10, half_to_float, float_to_half},
                                         Format{"bf16", 8, 7, bf16_to_float, float_to_bf16}),
                         [](const auto& test) { return test.param.name; });

TEST(Elements, StoreThenLoadGivesTheRoundedValueInEachType) {
  const float value = 1.0009765f;  // 1 + 2^-10: exact in f16 (to rounding of the literal), 1 in bf16
  std::byte row[32] = {};
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    store_element(row, type, 3, value);
    const float expected = type == DType::f32 ? value : type == DType::f16 ? 1.0f + 0x1p-10f : 1.0f;
    EXPECT_EQ(load_element(row, type, 3), expected) << static_cast<int>(type);
  }
}

}  // namespace
}  // namespace tactic
