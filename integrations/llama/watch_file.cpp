// Layout, little-endian: magic u64, layers u32; then for each layer: number i32, PromptWatch::save.
#include "watch_file.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>

#include "caches.h"
#include "record.h"

namespace tactic::llama {
namespace {

constexpr std::uint64_t kMagic = 0x31484354'57544354;  // "TCTWTCH1"

}  // namespace

void save_watch(const std::string& path) {
  const RecordFile file{"watch file", path};
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
    file.fail(Status::io, "cannot be written");
  }
}

void load_watch(const std::string& path) {
  const RecordFile file{"watch file", path};
  std::ifstream in(path, std::ios::binary);
  if (!in) file.fail(Status::io, "cannot be read");
  if (get<std::uint64_t>(in, file) != kMagic) file.fail(Status::corrupt, "is no watch file of this version");
  const std::vector<std::shared_ptr<Layer>> layers = Caches::instance().watched();
  const auto count = get<std::uint32_t>(in, file);
  if (count != layers.size()) {
    file.fail(Status::invalid_state, "is of " + std::to_string(count) + " layers, this process has " +
                                         std::to_string(layers.size()) + " (decode one token before loading)");
  }
  // All of it first: a damaged file changes nothing.
  std::vector<std::pair<std::shared_ptr<Layer>, PromptWatch>> read;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto number = get<std::int32_t>(in, file);
    const auto layer = std::find_if(layers.begin(), layers.end(), [&](const auto& l) { return l->number() == number; });
    if (layer == layers.end())
      file.fail(Status::invalid_state, "has a layer " + std::to_string(number) + " that this model has not");
    PromptWatch watch((*layer)->shape(), (*layer)->params());
    watch.load(in);
    read.emplace_back(*layer, std::move(watch));
  }
  for (auto& [layer, watch] : read) layer->watch() = std::move(watch);
}

}  // namespace tactic::llama
