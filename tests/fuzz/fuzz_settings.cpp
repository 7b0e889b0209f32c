// Options by name, as the environment and the program give them: lines of "name value". Whatever comes, a value is taken and
// read back, or refused with an error that names it; accepted options are always valid.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "core/error.h"
#include "settings.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tactic::llama::Settings settings;
  std::istringstream lines(std::string(reinterpret_cast<const char*>(data), size));
  for (std::string line; std::getline(lines, line);) {
    const auto space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string value = space == std::string::npos ? "" : line.substr(space + 1);
    const auto before = settings.get(name);
    try {
      settings.set(name, value);
      tactic::validate(settings.options());
      if (!settings.get(name)) std::abort();
    } catch (const tactic::Error& error) {
      if (error.status() != tactic::Status::invalid_argument || settings.get(name) != before) std::abort();
    }
  }
  return 0;
}
