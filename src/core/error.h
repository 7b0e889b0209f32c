// The one exception of the library. It never crosses the C API: capi/ turns it into a tactic_status and a message.
#pragma once

#include <stdexcept>
#include <string>

namespace tactic {

enum class Status : int {
  ok = 0,
  invalid_argument = 1,  // a value of the caller's is out of its range; the message names it, the value and the range
  invalid_state = 2,     // the call does not fit the state of the object (append after the context is full, ...)
  out_of_memory = 3,
  io = 4,           // a file could not be read or written; the message names it
  corrupt = 5,      // a file is not what it says it is, or is damaged
  non_finite = 6,   // NaN or infinity in q, K or V of the call; the outputs of other heads are valid
  unsupported = 7,  // valid, but not built into this library
  internal = 8,
};

class Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  Status status() const { return status_; }

 private:
  Status status_;
};

namespace cuda {
// What a library without CUDA answers to calls for the device.
[[noreturn]] inline void throw_absent() {
  throw Error(Status::unsupported, "this library was built without CUDA: configure with -DTACTIC_CUDA=ON (preset cuda)");
}
}  // namespace cuda

}  // namespace tactic
