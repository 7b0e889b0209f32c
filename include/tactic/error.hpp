// Part of tactic.hpp: failed calls as exceptions.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "tactic/tactic.h"

namespace tactic {

// What a failed call throws: the status and the message of the library.
class error : public std::runtime_error {
 public:
  error(tactic_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  tactic_status status() const noexcept { return status_; }

 private:
  tactic_status status_;
};

// Throws when a C call failed. For calls of the C API that this header does not wrap.
inline void check(tactic_status status) {
  if (status != TACTIC_OK) throw error(status, tactic_last_error());
}

// A span must hold what the call reads or writes.
inline void check_length(const char* name, std::size_t length, std::size_t needed) {
  if (length >= needed) return;
  throw error(TACTIC_INVALID_ARGUMENT,
              std::string(name) + " holds " + std::to_string(length) + " elements, must hold at least " + std::to_string(needed));
}

}  // namespace tactic
