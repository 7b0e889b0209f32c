// Operations of the engine by name; log lines.
#include "engine.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace tactic::llama {
namespace {

std::atomic<int> g_log_level{0};

Ops look_up() {
  Ops found;
  const struct {
    const char* name;
    int* code;
  } wanted[] = {{"NONE", &found.none},           {"VIEW", &found.view},
                {"RESHAPE", &found.reshape},     {"PERMUTE", &found.permute},
                {"TRANSPOSE", &found.transpose}, {"CONT", &found.cont},
                {"SCALE", &found.scale},         {"ROPE", &found.rope},
                {"SET_ROWS", &found.set_rows},   {"FLASH_ATTN_EXT", &found.flash_attn_ext},
                {"CUSTOM", &found.custom}};
  for (int op = 0; op < GGML_OP_COUNT; ++op) {
    const char* name = ggml_op_name(static_cast<ggml_op>(op));
    for (const auto& entry : wanted) {
      if (name != nullptr && std::strcmp(name, entry.name) == 0) *entry.code = op;
    }
  }
  return found;
}

}  // namespace

bool Ops::complete() const {
  for (const int op : {none, view, reshape, permute, transpose, cont, scale, rope, set_rows, flash_attn_ext, custom}) {
    if (op < 0) return false;
  }
  return true;
}

const Ops& ops() {
  static const Ops found = look_up();
  return found;
}

int log_level() { return g_log_level.load(std::memory_order_relaxed); }
void set_log_level(int level) { g_log_level.store(level, std::memory_order_relaxed); }

void log_line(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "tactic: %s\n", line);
}

}  // namespace tactic::llama
