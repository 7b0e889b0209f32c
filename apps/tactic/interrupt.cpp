// Ctrl-C: the first asks the work to stop, the second ends the program at once.
#include "interrupt.h"

#include <csignal>

namespace tactic::program {
namespace {

volatile std::sig_atomic_t asked = 0;

void ask(int /*signal*/) { asked = 1; }

}  // namespace

void watch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = ask;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one meets the default handler
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is then an error of write(), like a full disk
}

bool interrupted() { return asked != 0; }

}  // namespace tactic::program
