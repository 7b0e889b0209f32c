// The program's arguments, one a line: whatever they are, they are refused with one line and exit code 2, or make a command whose
// options the library takes.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

using namespace tactic::program;

void require(bool ok) {
  if (!ok) std::abort();
}

struct Check {
  void operator()(std::monostate) const { std::abort(); }
  void operator()(const RunOptions& o) const {
    require(!o.session.model.empty() && !o.session.file.empty() && o.session.tokens >= 1 && o.rounds >= 1);
    require(o.temperature >= 0 && o.temperature <= 10 && o.session.context >= 0);
    method(o.session.method);
  }
  void operator()(const CaptureOptions& o) const { require(!o.output.empty() && o.record.steps >= 1 && o.record.tokens >= 0); }
  void operator()(const InspectOptions& o) const {
    require(!o.capture.empty() || (!o.record.model.empty() && !o.record.file.empty()));
    method(o.method);
  }
  void operator()(const BenchOptions& o) const {
    const WorkloadSpec& w = o.workload;
    tactic::validate(tactic::Shape{w.q_heads, w.kv_heads, w.head_dim, w.head_dim});
    require(w.context >= 256 && w.layers >= 1 && o.rounds >= 1 && o.share >= 0 && o.share <= 1);
    method(o.method);
  }
  // options_for() throws what the library would refuse.
  static void method(const MethodOptions& m) { require(m.method == "stock" || options_for(m).mass > 0); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> words = {"tactic"};
  std::istringstream lines(std::string(reinterpret_cast<const char*>(data), size));
  for (std::string line; std::getline(lines, line);) words.push_back(line);
  std::vector<const char*> arguments;
  for (const std::string& word : words) arguments.push_back(word.c_str());
  const Request request = parse(static_cast<int>(arguments.size()), arguments.data());
  if (request.text.empty()) {
    std::visit(Check{}, request.command);
    return 0;
  }
  require(request.command.index() == 0);
  require(request.exit_code == 0 || request.exit_code == kUsageExit);
  if (request.exit_code != 0) require(request.text.starts_with("tactic: ") && request.text.find('\n') == std::string::npos);
  return 0;
}
