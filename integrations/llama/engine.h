// The engine's own headers (internal ones too: the plug-in is built for one ABI window), its operations by name, log lines.
#pragma once

#include <ggml-backend-impl.h>
#include <ggml-impl.h>

namespace tactic::llama {

// Operation codes as this engine numbers them; the enum has moved between versions of one API number, so they are looked up
// by ggml_op_name().
struct Ops {
  int none = -1, view = -1, reshape = -1, permute = -1, transpose = -1;  // compute nothing
  int cont = -1, scale = -1, rope = -1, set_rows = -1, flash_attn_ext = -1, custom = -1;

  bool complete() const;
  bool empty(int op) const { return op == none || op == view || op == reshape || op == permute || op == transpose; }
};
const Ops& ops();

// One line on stderr, "tactic: ...". log_level() is TACTIC_LOG: 0 errors only, 1 what is taken and declined, 2 each event.
int log_level();
void set_log_level(int level);
void log_line(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace tactic::llama
