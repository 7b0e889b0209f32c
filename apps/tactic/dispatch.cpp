// From arguments to a command's exit code.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string_view>

#include "arguments.h"
#include "core/error.h"
#include "eval_arguments.h"
#include "interrupt.h"

namespace tactic::program {
namespace {

struct Dispatch {
  int operator()(std::monostate) const { return kUsageExit; }
  int operator()(const RunOptions& options) const { return run(options); }
  int operator()(const CaptureOptions& options) const { return capture(options); }
  int operator()(const InspectOptions& options) const { return inspect_command(options); }
  int operator()(const BenchOptions& options) const { return bench_attention(options); }
};

}  // namespace

int parse_and_run(int count, const char* const* arguments) {
  try {
    if (count > 1 && std::string_view(arguments[1]) == "eval") return parse_and_run_eval(count, arguments);
    const Request request = parse(count, arguments);
    if (!request.text.empty()) {
      fmt::print(request.exit_code == 0 ? stdout : stderr, "{}\n", request.text);
      return request.exit_code;
    }
    return std::visit(Dispatch{}, request.command);
  } catch (const Interrupted&) {
    fmt::print(stderr, "tactic: interrupted: nothing was kept of what was not finished\n");
    return kInterruptedExit;
  } catch (const Error& error) {
    fmt::print(stderr, "tactic: {}\n", error.what());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "tactic: out of memory: free some, or use a shorter document or a smaller model\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "tactic: {}: this should not happen, please report it\n", error.what());
  }
  return kRuntimeExit;
}

}  // namespace tactic::program
