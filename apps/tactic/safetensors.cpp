// Files of named tensors in the safetensors format: 8 bytes of header length, a JSON header, the data.
#include "safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"

namespace tactic::program {
namespace {

using nlohmann::ordered_json;

constexpr std::uint64_t kHeaderLimit = 100'000'000;  // of the format's own reader
constexpr std::size_t kAlignment = 64;               // of the data's start, so that a mapped file can be read in place

struct Type {
  std::string_view name;
  std::size_t size;
};
constexpr Type kTypes[] = {{"F64", 8},  {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4}, {"F16", 2},
                           {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};

[[noreturn]] void damaged(const std::string& what) {
  throw Error(Status::corrupt, fmt::format("not a valid safetensors file: {}", what));
}

// JSON and JSON strings are the file's: shortened and made printable before they get into a message.
std::string shown(std::string_view name) {
  std::string text(name.substr(0, 40));
  for (char& c : text) c = c >= 0x20 && c < 0x7f ? c : '?';
  return text;
}

std::size_t size_of_type(const ordered_json& entry, const std::string& name) {
  const auto type = entry.find("dtype");
  if (type == entry.end() || !type->is_string()) damaged(fmt::format("tensor {} has no dtype", name));
  for (const Type& known : kTypes) {
    if (type->get_ref<const std::string&>() == known.name) return known.size;
  }
  damaged(fmt::format("tensor {} has the unknown dtype {}", name, shown(type->get_ref<const std::string&>())));
}

std::vector<std::int64_t> shape_of(const ordered_json& entry, const std::string& name, std::size_t element,
                                   std::uint64_t* bytes) {
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array() || shape->size() > 8) damaged(fmt::format("tensor {} has no valid shape", name));
  std::vector<std::int64_t> sizes;
  *bytes = element;
  for (const auto& size : *shape) {
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > (1ull << 40)) {
      damaged(fmt::format("tensor {} has an impossible shape", name));
    }
    sizes.push_back(size.get<std::int64_t>());
    if (__builtin_mul_overflow(*bytes, size.get<std::uint64_t>(), bytes)) {
      damaged(fmt::format("tensor {} has an impossible shape", name));
    }
  }
  return sizes;
}

Tensor tensor_of(const std::string& key, const ordered_json& entry, std::span<const std::byte> data) {
  const std::string name = shown(key);
  if (!entry.is_object()) damaged(fmt::format("the entry of tensor {} is no object", name));
  const std::size_t element = size_of_type(entry, name);
  std::uint64_t bytes = 0;
  Tensor tensor;
  tensor.name = key;
  tensor.type = entry["dtype"].get<std::string>();
  tensor.shape = shape_of(entry, name, element, &bytes);
  const auto range = entry.find("data_offsets");
  if (range == entry.end() || !range->is_array() || range->size() != 2 || !(*range)[0].is_number_unsigned() ||
      !(*range)[1].is_number_unsigned()) {
    damaged(fmt::format("tensor {} has no valid data_offsets", name));
  }
  const auto begin = (*range)[0].get<std::uint64_t>();
  const auto end = (*range)[1].get<std::uint64_t>();
  if (begin > end || end > data.size())
    damaged(fmt::format("tensor {} reaches past the end of the file (it may be cut short)", name));
  if (end - begin != bytes) damaged(fmt::format("tensor {} has {} bytes where its shape needs {}", name, end - begin, bytes));
  if (begin % element != 0) damaged(fmt::format("tensor {} is not aligned", name));
  tensor.data = data.subspan(begin, bytes);
  return tensor;
}

void check_cover(const std::vector<Tensor>& tensors, std::span<const std::byte> data) {
  std::vector<std::pair<std::size_t, std::size_t>> ranges;
  for (const Tensor& tensor : tensors) {
    const auto begin = static_cast<std::size_t>(tensor.data.data() - data.data());
    ranges.emplace_back(begin, begin + tensor.data.size());
  }
  std::sort(ranges.begin(), ranges.end());
  std::size_t at = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != at) damaged("its tensors overlap or leave gaps");
    at = end;
  }
  if (at != data.size()) damaged(fmt::format("{} bytes at its end belong to no tensor", data.size() - at));
}

}  // namespace

const Tensor* Tensors::find(std::string_view name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

Tensors parse_safetensors(std::span<const std::byte> bytes) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof length) damaged("it is shorter than its header");
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > kHeaderLimit || length > bytes.size() - sizeof length) {
    damaged(fmt::format("its header claims {} bytes of {}", length, bytes.size() - sizeof length));
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data() + sizeof length);
  const ordered_json header = ordered_json::parse(text, text + length, nullptr, false);
  if (header.is_discarded() || !header.is_object()) damaged("its header is not a JSON object");
  const std::span<const std::byte> data = bytes.subspan(sizeof length + length);
  Tensors result;
  for (const auto& [key, entry] : header.items()) {
    if (key != "__metadata__") {
      if (result.find(key) != nullptr) damaged(fmt::format("tensor {} is there twice", shown(key)));
      result.tensors.push_back(tensor_of(key, entry, data));
      continue;
    }
    if (!entry.is_object()) damaged("its metadata is no object");
    for (const auto& [name, value] : entry.items()) {
      if (!value.is_string()) damaged(fmt::format("its metadata {} is no string", shown(name)));
      result.metadata[name] = value.get<std::string>();
    }
  }
  check_cover(result.tensors, data);
  return result;
}

void write_safetensors(const std::string& path, const Tensors& tensors) {
  ordered_json header;
  header["__metadata__"] = tensors.metadata;
  std::uint64_t at = 0;
  for (const Tensor& tensor : tensors.tensors) {
    header[tensor.name] = {{"dtype", tensor.type}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.data.size()}}};
    at += tensor.data.size();
  }
  std::string text = header.dump();
  text.append((kAlignment - (sizeof(std::uint64_t) + text.size()) % kAlignment) % kAlignment, ' ');
  const std::uint64_t length = text.size();
  NewFile file(path, "free some space or name another file with --output");
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const Tensor& tensor : tensors.tensors) file.write(tensor.data);
  file.commit();
}

}  // namespace tactic::program
