#include "capi/handle.h"

#include <cstdio>
#include <new>

namespace tactic::capi {
namespace {

tactic_status put(Message* message, tactic_status status, const char* text) noexcept {
  thread_message().set(text);
  if (message != nullptr) message->set(text);
  return status;
}

}  // namespace

void Message::set(const char* message) noexcept { std::snprintf(text, sizeof text, "%s", message); }

Message& thread_message() noexcept {
  thread_local Message message;
  return message;
}

tactic_status fail(Message* message) noexcept {
  try {
    throw;
  } catch (const Error& e) {
    return put(message, static_cast<tactic_status>(e.status()), e.what());
  } catch (const std::bad_alloc&) {
    return put(message, TACTIC_OUT_OF_MEMORY, "out of memory; free some, or index fewer tokens");
  } catch (const std::exception& e) {
    return put(message, TACTIC_INTERNAL, e.what());
  } catch (...) {
    return put(message, TACTIC_INTERNAL, "unknown exception");
  }
}

}  // namespace tactic::capi
