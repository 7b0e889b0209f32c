// The attention that the user asks for, as the library's options.
#include "method.h"

#include <algorithm>

namespace tactic::program {

Options options_for(const MethodOptions& wanted) {
  Options options = wanted.method == "paper" ? paper_options() : Options{};
  options.method = wanted.method == "paper" ? Method::paper : (wanted.method == "full" ? Method::full : Method::tactic);
  options.mass = static_cast<float>(wanted.mass);
  options.goal = std::string(wanted.used_goal()) == "error" ? Goal::error : Goal::mass;
  options.promise = wanted.promise && options.method == Method::tactic;
  if (wanted.cluster_size > 0) options.cluster_size = wanted.cluster_size;
  options.recluster_tokens = recluster_tokens_for(options.cluster_size, options.recluster_tokens);
  validate(options);
  return options;
}

int recluster_tokens_for(int cluster_size, int usual) { return std::max(usual, 16 * cluster_size); }

}  // namespace tactic::program
