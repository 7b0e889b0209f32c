// The growing structs of tactic.h: defaults, reading one of an older or newer caller, and what they mean in the core.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <string>

#include "capi/handle.h"
#include "core/options.h"
#include "core/view.h"
#include "sequence/sequence.h"

namespace tactic::capi {

// Of a struct T: its name, its default value, and the smallest size that a caller may give, up to which fields have no defaults.
// T must end without padding: a field added later must not lie in bytes that an older caller never set.
template <typename T>
struct Growing;

// Also for the device's structs (cuda.cpp).
#define TACTIC_GROWING(Type, label, LastRequired, LastField)                                                  \
  template <>                                                                                                 \
  struct Growing<Type> {                                                                                      \
    static constexpr const char* name = label;                                                                \
    static constexpr std::size_t required = offsetof(Type, LastRequired) + sizeof(Type::LastRequired);        \
    static_assert(sizeof(Type) == offsetof(Type, LastField) + sizeof(Type::LastField), "padding at the end"); \
    static Type defaults();                                                                                   \
  }
TACTIC_GROWING(tactic_options, "options", mass, fit_second);
TACTIC_GROWING(tactic_context_config, "config", threads, parallel_user);
TACTIC_GROWING(tactic_kv_view, "kv", block_table, block_count);
TACTIC_GROWING(tactic_attend_args, "args", out, lse);
TACTIC_GROWING(tactic_report, "report", size, total_us);
TACTIC_GROWING(tactic_sequence_config, "config", layers, options);
TACTIC_GROWING(tactic_update_report, "report", size, seconds);

// Larger sizes are garbage of a struct that was never initialised, not growth.
constexpr std::size_t kLargestStruct = 4096;

inline void check_size(const char* name, std::size_t size, std::size_t required) {
  if (size >= required && size <= kLargestStruct) return;
  refuse(std::string(name) + ".size is " + std::to_string(size) + ", must be in [" + std::to_string(required) + ", " +
         std::to_string(kLargestStruct) + "]; set it with the struct's init function");
}

// Defaults into the caller's struct of `size` bytes.
template <typename T>
void write_defaults(T* to, std::size_t size, T value = Growing<T>::defaults()) {
  require(to, Growing<T>::name);
  check_size(Growing<T>::name, size, Growing<T>::required);
  value.size = size;
  std::memset(static_cast<void*>(to), 0, size);
  std::memcpy(static_cast<void*>(to), &value, std::min(size, sizeof value));
}

// The caller's struct, with defaults for what it is too short to hold. A longer one must be zero beyond what we know.
template <typename T>
T read_struct(const T* from) {
  require(from, Growing<T>::name);
  check_size(Growing<T>::name, from->size, Growing<T>::required);
  T value = Growing<T>::defaults();
  std::memcpy(&value, static_cast<const void*>(from), std::min(from->size, sizeof value));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = sizeof value; i < from->size; ++i) {
    if (bytes[i] == 0) continue;
    throw Error(Status::unsupported, std::string(Growing<T>::name) + ".size is " + std::to_string(from->size) +
                                         ", this library knows " + std::to_string(sizeof value) +
                                         " bytes and the rest is not zero; update libtactic or leave the new fields zero");
  }
  return value;
}

// Results back into the caller's struct, as far as it reaches.
template <typename T>
void write_struct(const T& value, T* to) {
  std::memcpy(static_cast<void*>(to), &value, std::min(to->size, sizeof value));
}

tactic_options to_c(const Options& options);
// Throws Error(invalid_argument) when a value is out of its range; message "options.<field> is ...".
Options to_core(const tactic_options& options);

// Checked, with the defaults of v_head_dim and scale put in.
struct Attention {
  Shape shape;
  AttentionParams params;  // sink_logits: null
};
Attention to_core(const tactic_attention& attention);
SequenceConfig to_core(const tactic_sequence_config& config);

// Checked against the shape of the layer.
KvView to_core(const tactic_kv_view& view, const Shape& shape);

// No NaN or infinity among `count` floats: their exponents are not all ones. A form that compilers vectorise.
inline bool all_finite(const float* values, int count) {
  std::uint32_t bad = 0;
  for (int i = 0; i < count; ++i) bad |= (std::bit_cast<std::uint32_t>(values[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  return bad == 0;
}

// Throws when value lies outside [low, high].
void check_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high);

}  // namespace tactic::capi
