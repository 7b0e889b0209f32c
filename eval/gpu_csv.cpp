// Rows of the GPU benchmark.
#include "gpu_csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>

#include "core/error.h"

namespace tactic::eval {
namespace {

// Fields of a line; quotes as in RFC 4180, without line breaks inside.
std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"') {
      fields.back() += '"';
      ++i;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (c == ',' && !quoted) {
      fields.emplace_back();
    } else if (c != '\r') {
      fields.back() += c;
    }
  }
  return fields;
}

nlohmann::ordered_json value_of(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) return number;
  return text;
}

}  // namespace

std::vector<nlohmann::ordered_json> read_gpu_csv(const std::string& path) {
  std::ifstream in(path);
  const char* remedy = "write it with bench/gpu/run.py";
  if (!in) throw Error(Status::io, fmt::format("{} cannot be read ({}): {}", path, std::strerror(errno), remedy));
  std::string line;
  std::getline(in, line);
  const std::vector<std::string> names = split(line);
  for (const char* needed : {"slice", "what", "variant", "context", "batch", "us"}) {
    if (std::find(names.begin(), names.end(), needed) == names.end())
      throw Error(Status::corrupt, fmt::format("{} line 1: column {} is missing: {}", path, needed, remedy));
  }
  std::vector<nlohmann::ordered_json> rows;
  for (int number = 2; std::getline(in, line); ++number) {
    if (line.empty()) continue;
    const std::vector<std::string> fields = split(line);
    if (fields.size() != names.size()) {
      throw Error(Status::corrupt,
                  fmt::format("{} line {}: {} fields, {} columns: {}", path, number, fields.size(), names.size(), remedy));
    }
    nlohmann::ordered_json row;
    for (std::size_t i = 0; i < names.size(); ++i) row[names[i]] = value_of(fields[i]);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace tactic::eval
