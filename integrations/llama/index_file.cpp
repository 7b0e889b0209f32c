// Layout, little-endian: magic u64, layers u32; then for each layer: number i32, tokens i64, samples u32, samples x (token i64,
// checksum u64), bytes u64, that many bytes of Sequence::save.
#include "index_file.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "caches.h"
#include "record.h"

namespace tactic::llama {
namespace {

constexpr std::uint64_t kMagic = 0x31584449'4c544354;  // "TCTLIDX1"
// Tokens whose K and V are compared when the index is loaded: evenly spread. Any other document differs in the first ones.
constexpr std::int64_t kSamples = 64;
constexpr std::uint32_t kMostLayers = 4096;

void put_layer(std::ostream& out, const Layer& layer, const Track& track, const KvView& kv) {
  std::ostringstream bytes;
  track.sequence().save(bytes);
  const std::string index = bytes.str();
  const std::int64_t tokens = track.indexed();
  const std::int64_t samples = std::min(kSamples, tokens);
  put<std::int32_t>(out, layer.number());
  put<std::int64_t>(out, tokens);
  put<std::uint32_t>(out, static_cast<std::uint32_t>(samples));
  for (std::int64_t i = 0; i < samples; ++i) {
    const std::int64_t token = (i + 1) * tokens / samples - 1;
    put<std::int64_t>(out, token);
    put<std::uint64_t>(out, checksum(kv, token));
  }
  put<std::uint64_t>(out, index.size());
  out.write(index.data(), static_cast<std::streamsize>(index.size()));
}

SavedIndex get_layer(std::istream& in, const RecordFile& file) {
  SavedIndex saved;
  saved.tokens = get<std::int64_t>(in, file);
  const auto samples = get<std::uint32_t>(in, file);
  if (saved.tokens < 0 || samples > kSamples) file.fail(Status::corrupt, "holds impossible numbers; delete it");
  for (std::uint32_t i = 0; i < samples; ++i) {
    saved.sampled.push_back(get<std::int64_t>(in, file));
    saved.checksums.push_back(get<std::uint64_t>(in, file));
    if (saved.sampled.back() < 0 || saved.sampled.back() >= saved.tokens)
      file.fail(Status::corrupt, "holds impossible numbers; delete it");
  }
  const auto size = get<std::uint64_t>(in, file);
  // In pieces, so that a damaged size ends at the end of the file and not in an allocation.
  char piece[1 << 16];
  for (std::uint64_t done = 0; done < size;) {
    const auto n = static_cast<std::streamsize>(std::min<std::uint64_t>(sizeof piece, size - done));
    in.read(piece, n);
    if (in.gcount() != n) file.fail(Status::corrupt, "is cut short; delete it");
    saved.bytes.append(piece, static_cast<std::size_t>(n));
    done += static_cast<std::uint64_t>(n);
  }
  return saved;
}

}  // namespace

void save_index(const std::string& path) {
  const RecordFile file{"index file", path};
  std::vector<std::shared_ptr<Layer>> layers = Caches::instance().recent();
  std::erase_if(layers, [](const auto& layer) { return layer->number() < 0 || layer->current() == nullptr; });
  if (layers.empty()) throw Error(Status::invalid_state, "no index to save: nothing was decoded yet");
  const std::string partial = path + ".part";
  {
    std::ofstream out(partial, std::ios::binary | std::ios::trunc);
    if (!out) file.fail(Status::io, "cannot be written");
    put(out, kMagic);
    put(out, static_cast<std::uint32_t>(layers.size()));
    for (const auto& layer : layers) put_layer(out, *layer, *layer->current(), layer->view(*layer->current()));
    out.flush();
    if (!out) {
      std::remove(partial.c_str());
      file.fail(Status::io, "write failed (disk full?)");
    }
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    file.fail(Status::io, "cannot be replaced");
  }
}

void load_index(const std::string& path) {
  const RecordFile file{"index file", path};
  std::ifstream in(path, std::ios::binary);
  if (!in) file.fail(Status::io, "cannot be read");
  if (get<std::uint64_t>(in, file) != kMagic) file.fail(Status::corrupt, "is no index of this version");
  const auto count = get<std::uint32_t>(in, file);
  if (count > kMostLayers) file.fail(Status::corrupt, "holds impossible numbers; delete it");
  std::vector<std::pair<int, SavedIndex>> layers;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto number = get<std::int32_t>(in, file);
    layers.emplace_back(number, get_layer(in, file));
  }
  for (auto& [number, saved] : layers) Caches::instance().offer(number, std::move(saved));
}

void drop_indexes() { Caches::instance().drop_indexes(); }

}  // namespace tactic::llama
