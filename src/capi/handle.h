// What every handle of the C API carries: the message of its last failure and a mark that a call is running on it.
#pragma once

#include <atomic>
#include <string>

#include "core/error.h"
#include "tactic/tactic.h"

namespace tactic::capi {

// Room for a message; a fixed array, so that running out of memory can be reported without allocating.
struct Message {
  char text[512] = "";
  void set(const char* message) noexcept;
};

// The calling thread's last message (tactic_last_error).
Message& thread_message() noexcept;

struct Handle {
  Message message;
  std::atomic<bool> busy{false};
};

// Claims a handle for the duration of a call; throws Error(invalid_state) when another call runs on it.
class Claim {
 public:
  Claim(Handle& handle, const char* name) : handle_(handle) {
    if (handle.busy.exchange(true, std::memory_order_acquire)) {
      throw Error(Status::invalid_state, std::string(name) + " is in use by another call; make one call at a time");
    }
  }
  ~Claim() { handle_.busy.store(false, std::memory_order_release); }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

 private:
  Handle& handle_;
};

// To be called in a catch block: turns the current exception into a status; its message goes to the thread and, if not null, to
// `message`.
tactic_status fail(Message* message) noexcept;

[[noreturn]] inline void refuse(const std::string& message) { throw Error(Status::invalid_argument, message); }

inline void require(const void* pointer, const char* name, const char* remedy = "give its address") {
  if (pointer == nullptr) refuse(std::string(name) + " is null; " + remedy);
}

// Runs the body of an API function that has no handle.
template <typename Body>
tactic_status guard(Body&& body) noexcept {
  try {
    body();
    return TACTIC_OK;
  } catch (...) {
    return fail(nullptr);
  }
}

// Runs the body of an API function on its handle. A busy handle's message is its running call's, so it is left alone.
template <typename H, typename Body>
tactic_status guard(H* handle, const char* name, Body&& body) noexcept {
  try {
    require(handle, name, "create it first");
    const Claim claim(*handle, name);
    try {
      body();
      return TACTIC_OK;
    } catch (...) {
      return fail(&handle->message);
    }
  } catch (...) {
    return fail(nullptr);
  }
}

}  // namespace tactic::capi
