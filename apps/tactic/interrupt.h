// Ctrl-C: the first asks the work to stop, the second ends the program at once.
#pragma once

namespace tactic::program {

void watch_interrupts();
bool interrupted();

// Thrown when Ctrl-C came before there was anything to show.
struct Interrupted {};

}  // namespace tactic::program
