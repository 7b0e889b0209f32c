// tactic eval report: results of a folder as one page.
#include <fmt/format.h>

#include "eval.h"
#include "eval/report/report.h"
#include "files.h"

namespace tactic::program {

int eval_report(const ReportOptions& options) {
  write_text_file(options.output, eval::make_report(options.folder), "name another file with --output");
  fmt::print("{}\n", options.output);
  return 0;
}

}  // namespace tactic::program
