// Options as --name value; lists with commas.
#include "settings.h"

#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>

namespace tactic::bench::gpu {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

[[noreturn]] void refuse(const std::string& name, const std::string& value, const std::string& allowed) {
  throw std::runtime_error("--" + name + " " + value + ": " + allowed);
}

double number(const std::string& name, const std::string& value, double low, double high) {
  std::size_t used = 0;
  double x = 0;
  try {
    x = std::stod(value, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != value.size() || !(x >= low && x <= high))
    refuse(name, value, "must be a number from " + std::to_string(low) + " to " + std::to_string(high));
  return x;
}

Heads heads(const std::string& value) {
  Heads h;
  char rest = 0;
  if (std::sscanf(value.c_str(), "%d/%d/%d%c", &h.q, &h.kv, &h.dim, &rest) != 3 || h.q < 1 || h.kv < 1 || h.q % h.kv != 0)
    refuse("shapes", value, "must be query heads/KV heads/head dim, as 32/8/128");
  return h;
}

Cell cell(const std::string& value) {
  Cell c;
  long long context = 0;
  char rest = 0;
  if (std::sscanf(value.c_str(), "%dx%lld%c", &c.batch, &context, &rest) != 2 || c.batch < 1 || context < 1024)
    refuse("cells", value, "must be batch x context (at least 1024), as 8x32768");
  c.context = context;
  return c;
}

template <class T>
std::vector<T> each(const std::string& value, const std::function<T(const std::string&)>& read) {
  std::vector<T> all;
  for (const std::string& part : split(value)) all.push_back(read(part));
  return all;
}

}  // namespace

Settings parse_settings(int argc, char** argv) {
  Settings s;
  const std::map<std::string, std::function<void(const std::string&)>> options = {
      {"csv", [&](const std::string& v) { s.csv = v; }},
      {"reps", [&](const std::string& v) { s.repetitions = static_cast<int>(number("reps", v, 3, 1000)); }},
      {"pool", [&](const std::string& v) { s.pool_gigabytes = number("pool", v, 0.1, 130); }},
      {"shapes", [&](const std::string& v) { s.shapes = each<Heads>(v, heads); }},
      {"cells", [&](const std::string& v) { s.cells = each<Cell>(v, cell); }},
      {"shares",
       [&](const std::string& v) {
         s.shares = each<double>(v, [](const std::string& x) { return number("shares", x, 0.001, 1); });
       }},
      {"masses",
       [&](const std::string& v) {
         s.masses = each<double>(v, [](const std::string& x) { return number("masses", x, 0.01, 1); });
       }},
      {"cluster-sizes",
       [&](const std::string& v) {
         s.cluster_sizes =
             each<int>(v, [](const std::string& x) { return static_cast<int>(number("cluster-sizes", x, 2, 4096)); });
       }},
      {"methods", [&](const std::string& v) { s.methods = split(v); }},
  };
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--", 0) != 0) {
      s.parts.push_back(argument);
      continue;
    }
    const auto option = options.find(argument.substr(2));
    if (option == options.end()) throw std::runtime_error(argument + ": unknown option");
    if (i + 1 == argc) throw std::runtime_error(argument + ": needs a value");
    option->second(argv[++i]);
  }
  return s;
}

std::string usage() {
  return "Usage: bench_gpu PART... [--cells 1x32768,8x131072] [--shapes 32/8/128] [--shares .05] [--masses .9] [--cluster-sizes "
         "32]\n"
         "                 [--methods tactic,paper] [--reps 25] [--pool GB] [--csv FILE]\n"
         "Parts: limits, synthetic, layers, clustering, union, end-to-end\n";
}

}  // namespace tactic::bench::gpu
