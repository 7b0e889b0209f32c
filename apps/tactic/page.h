// The page of inspect: apps/tactic/page.html, put into the program by CMake.
#pragma once

namespace tactic::program {

extern const char* const kInspectPage;

}  // namespace tactic::program
