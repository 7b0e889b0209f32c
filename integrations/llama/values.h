// Values of settings as text: reading them, refusing them.
#pragma once

#include <charconv>
#include <string>

#include "core/error.h"

namespace tactic::llama {

[[noreturn]] inline void reject(const std::string& name, const std::string& value, const std::string& expected) {
  throw Error(Status::invalid_argument, name + " is '" + value + "', must be " + expected);
}

template <typename T>
T number(const std::string& name, const std::string& value, const char* expected) {
  T parsed{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), parsed);
  if (error != std::errc() || end != value.data() + value.size()) reject(name, value, expected);
  return parsed;
}

template <std::size_t N>
int choice(const std::string& name, const std::string& value, const char* const (&names)[N]) {
  for (std::size_t i = 0; i < N; ++i) {
    if (value == names[i]) return static_cast<int>(i);
  }
  std::string expected = "one of";
  for (const char* known : names) expected += std::string(" ") + known;
  reject(name, value, expected);
}

inline bool flag(const std::string& name, const std::string& value) {
  if (value == "1" || value == "on" || value == "true") return true;
  if (value == "0" || value == "off" || value == "false") return false;
  reject(name, value, "0 or 1");
}

inline int bounded(const std::string& name, const std::string& value, int low, int high) {
  const int parsed = number<int>(name, value, "a whole number");
  if (parsed < low || parsed > high) {
    reject(name, value, "in [" + std::to_string(low) + ", " + std::to_string(high) + "]");
  }
  return parsed;
}

}  // namespace tactic::llama
