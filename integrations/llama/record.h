// The plug-in's own files: numbers as they lie in memory, errors that name the file.
#pragma once

#include <istream>
#include <ostream>
#include <string>

#include "core/error.h"

namespace tactic::llama {

struct RecordFile {
  const char* kind;  // "index file"
  const std::string& path;

  [[noreturn]] void fail(Status status, const std::string& what) const {
    throw Error(status, std::string(kind) + " '" + path + "': " + what);
  }
};

template <typename T>
void put(std::ostream& out, T value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
T get(std::istream& in, const RecordFile& file) {
  T value{};
  in.read(reinterpret_cast<char*>(&value), sizeof value);
  if (!in) file.fail(Status::corrupt, "is cut short; delete it");
  return value;
}

}  // namespace tactic::llama
