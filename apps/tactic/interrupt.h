// Ctrl-C: the first asks the work to stop, the second ends the program at once.
#pragma once

namespace tactic::program {

void watch_interrupts();
bool interrupted();

}  // namespace tactic::program
