// Files of named tensors in the safetensors format: 8 bytes of header length, a JSON header, the data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"

namespace tactic::program {

struct Tensor {
  std::string name;
  std::string type;  // F32, F16, BF16, I32, ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;  // the file's or the caller's
};

struct Tensors {
  std::map<std::string, std::string> metadata;
  std::vector<Tensor> tensors;

  const Tensor* find(std::string_view name) const;
};

// Reads the layout of a file's bytes; the tensors point into them. Everything in the header is checked: its length, its JSON,
// every type, shape and range; the data must be covered without gap or overlap. Throws Error(corrupt) that says what is wrong.
Tensors parse_safetensors(std::span<const std::byte> bytes);

// Whole or not at all (see NewFile).
void write_safetensors(const std::string& path, const Tensors& tensors);

// [count] values of a tensor's bytes. The bytes must be aligned for T, as those of a parsed tensor are.
template <typename T>
std::span<const T> values_of(const Tensor& tensor) {
  return {reinterpret_cast<const T*>(tensor.data.data()), tensor.data.size() / sizeof(T)};
}

}  // namespace tactic::program
