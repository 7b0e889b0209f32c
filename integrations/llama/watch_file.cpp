// Layout, little-endian: magic u64, layers u32; then for each layer: number i32, PromptWatch::save.
#include "watch_file.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>

#include "caches.h"
#include "core/error.h"

namespace tactic::llama {
namespace {

constexpr std::uint64_t kMagic = 0x31484354'57544354;  // "TCTWTCH1"

[[noreturn]] void fail(Status status, const std::string& path, const std::string& what) {
  throw Error(status, "watch file '" + path + "': " + what);
}

template <typename T>
void put(std::ostream& out, T value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
T get(std::istream& in, const std::string& path) {
  T value{};
  in.read(reinterpret_cast<char*>(&value), sizeof value);
  if (!in) fail(Status::corrupt, path, "is cut short; delete it");
  return value;
}

}  // namespace

void save_watch(const std::string& path) {
  const std::vector<std::shared_ptr<Layer>> layers = Caches::instance().watched();
  if (layers.empty()) throw Error(Status::invalid_state, "nothing to save: no prompt was read yet");
  const std::string partial = path + ".part";
  std::ofstream out(partial, std::ios::binary | std::ios::trunc);
  put(out, kMagic);
  put(out, static_cast<std::uint32_t>(layers.size()));
  for (const auto& layer : layers) {
    put<std::int32_t>(out, layer->number());
    layer->watch().save(out);
  }
  out.close();
  if (!out || std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    fail(Status::io, path, "cannot be written");
  }
}

void load_watch(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(Status::io, path, "cannot be read");
  if (get<std::uint64_t>(in, path) != kMagic) fail(Status::corrupt, path, "is no watch file of this version");
  const std::vector<std::shared_ptr<Layer>> layers = Caches::instance().watched();
  const auto count = get<std::uint32_t>(in, path);
  if (count != layers.size()) {
    fail(Status::invalid_state, path,
         "is of " + std::to_string(count) + " layers, this process has " + std::to_string(layers.size()) +
             " (decode one token before loading)");
  }
  // All of it first: a damaged file changes nothing.
  std::vector<std::pair<std::shared_ptr<Layer>, PromptWatch>> read;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto number = get<std::int32_t>(in, path);
    const auto layer = std::find_if(layers.begin(), layers.end(), [&](const auto& l) { return l->number() == number; });
    if (layer == layers.end())
      fail(Status::invalid_state, path, "has a layer " + std::to_string(number) + " that this model has not");
    PromptWatch watch((*layer)->shape(), (*layer)->params());
    watch.load(in);
    read.emplace_back(*layer, std::move(watch));
  }
  for (auto& [layer, watch] : read) layer->watch() = std::move(watch);
}

}  // namespace tactic::llama
