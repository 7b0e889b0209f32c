// LongBench's question answering tasks, from its published files (one JSON object a line).
#pragma once

#include <span>
#include <string>
#include <vector>

namespace tactic::eval {

struct LongBenchTask {
  const char* name;    // of the file NAME.jsonl
  const char* title;   // as in the paper's tables
  const char* before;  // instruction in front of the context
  const char* after;   // instruction behind it; the question follows
  int answer_tokens;
  bool chat;        // inside the model's chat template
  bool first_line;  // only the answer's first line counts
};
// The paper's six, in the order of its Table 2. Throws Error(invalid_argument) for another name.
std::span<const LongBenchTask> longbench_tasks();
const LongBenchTask& longbench_task(const std::string& name);

struct LongBenchSample {
  std::string id;
  std::string context;
  std::string input;
  std::vector<std::string> answers;
};
// Fields input, context, answers and _id of every line. Throws Error(io) or Error(corrupt) naming file, line and field.
std::vector<LongBenchSample> read_longbench(const std::string& path);

}  // namespace tactic::eval
