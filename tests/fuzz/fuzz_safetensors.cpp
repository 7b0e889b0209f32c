// Capture files: whatever the bytes, parsing gives tensors inside them or refuses with Error(corrupt).
#include <cstdint>
#include <cstdlib>
#include <functional>

#include "core/error.h"
#include "safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    for (const auto& tensor : tactic::program::parse_safetensors(bytes).tensors) {
      const std::less_equal<const std::byte*> at_or_before;
      if (!tensor.data.empty() && (!at_or_before(bytes.data(), tensor.data.data()) ||
                                   !at_or_before(tensor.data.data() + tensor.data.size(), bytes.data() + bytes.size())))
        std::abort();
    }
  } catch (const tactic::Error& error) {
    if (error.status() != tactic::Status::corrupt) std::abort();
  }
  return 0;
}
