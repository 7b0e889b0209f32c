// Rows of the GPU benchmark (bench/gpu/run.py writes them).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tactic::eval {

// One object a row, its fields as the file's first line names them; numbers where they are numbers. The columns slice, what,
// variant, context, batch and us must be there. Throws Error(io) or Error(corrupt) naming file, line and field.
std::vector<nlohmann::ordered_json> read_gpu_csv(const std::string& path);

}  // namespace tactic::eval
