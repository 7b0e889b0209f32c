// tactic: answers from long documents with adaptive sparse attention.
#include "arguments.h"
#include "interrupt.h"

int main(int count, char** arguments) {
  tactic::program::watch_interrupts();
  return tactic::program::parse_and_run(count, arguments);
}
