// The engine's saved state of a sequence, from the layout of flash attention to that of plain attention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tactic::program {

// With flash attention on, the engine keeps V as [cell, kv_heads * dim]; with it off, transposed. The saved state follows, and
// the engine refuses the other one. This turns the V of an fa-on state (of one sequence; one cache or several) into the fa-off
// form and copies the rest. Throws Error(corrupt) if the state is not laid out as in the pinned engine version.
std::vector<std::uint8_t> transpose_v(std::span<const std::uint8_t> state);

}  // namespace tactic::program
