// Prefilled documents on disk, so that the next question starts at once.
#include "cache.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "files.h"
#include "progress.h"

namespace tactic::program {
namespace {

constexpr char kMagic[8] = {'T', 'A', 'C', 'T', 'D', 'O', 'C', '\0'};
constexpr std::uint32_t kVersion = 1;

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t tokens;
  std::uint64_t key;
  std::uint64_t state_bytes;
  double prefill_seconds;
  std::uint64_t checksum;  // of tokens and state
};
static_assert(sizeof(Header) == 48);

constexpr const char* kRemedy = "free some space or name another folder with --cache, or pass --no-cache";

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values.data(), values.size()));
}

// The model's file as the file system knows it plus a sample of its content: reading all of it would take longer than it is
// worth for files of many GB.
std::uint64_t identity_of(const std::string& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  constexpr std::size_t kSample = 1u << 20;
  std::uint64_t hash = hash_text(fmt::format("{}", bytes.size()));
  hash = hash_bytes(bytes.first(std::min(kSample, bytes.size())), hash);
  hash = hash_bytes(bytes.subspan(bytes.size() / 2, std::min(kSample, bytes.size() - bytes.size() / 2)), hash);
  return hash_bytes(bytes.last(std::min(kSample, bytes.size())), hash);
}

}  // namespace

std::string Cache::default_folder() {
  if (const char* base = std::getenv("XDG_CACHE_HOME"); base != nullptr && *base != '\0') return std::string(base) + "/tactic";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') return std::string(home) + "/.cache/tactic";
  return ".tactic-cache";
}

Cache::Cache(std::string folder) : folder_(std::move(folder)) {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) {
    throw Error(Status::io, fmt::format("cache {} cannot be made ({}): name another folder with --cache, or pass --no-cache",
                                        folder_, error.message()));
  }
  NewFile probe(folder_ + "/probe", kRemedy);  // says now, not after minutes of reading, that nothing can be kept here
  probe.write("x");
}

std::uint64_t Cache::key_of(const Model& model, const Tokens& tokens) {
  std::uint64_t key = identity_of(model.path());
  key = hash_text(engine_version(), key);
  return hash_bytes(bytes_of(tokens), key);
}

std::string Cache::state_path(std::uint64_t key) const { return fmt::format("{}/{:016x}.state", folder_, key); }

std::string Cache::index_path(std::uint64_t key, std::uint64_t options) const {
  return fmt::format("{}/{:016x}-{:08x}.index", folder_, key, static_cast<std::uint32_t>(options ^ (options >> 32)));
}

std::string Cache::watch_path(std::uint64_t key) const { return fmt::format("{}/{:016x}.watch", folder_, key); }

std::optional<CachedDocument> Cache::find(std::uint64_t key, const Tokens& tokens) const {
  const std::string path = state_path(key);
  if (!std::filesystem::exists(path)) return std::nullopt;
  const MappedFile file(path);
  const auto damaged = [&](const char* what) {
    return Error(Status::corrupt,
                 fmt::format("cache file {} is damaged ({}): delete it and the document is read again", path, what));
  };
  Header header = {};
  if (file.bytes().size() < sizeof header) throw damaged("its header is cut short");
  std::memcpy(&header, file.bytes().data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) throw damaged("it is no cached document");
  if (header.version != kVersion) throw damaged("its version is another program's");
  const std::span<const std::byte> content = file.bytes().subspan(sizeof header);
  const std::uint64_t token_bytes = std::uint64_t{header.tokens} * sizeof(Token);
  if (content.size() < token_bytes || content.size() - token_bytes != header.state_bytes) throw damaged("its length is wrong");
  if (hash_bytes(content) != header.checksum) throw damaged("its checksum differs");
  if (header.key != key || token_bytes != tokens.size() * sizeof(Token) ||
      std::memcmp(content.data(), tokens.data(), token_bytes) != 0) {
    throw damaged("it holds another document");
  }
  CachedDocument document;
  const std::span<const std::byte> state = content.subspan(token_bytes);
  document.state.resize(state.size());
  std::memcpy(document.state.data(), state.data(), state.size());
  document.prefill_seconds = header.prefill_seconds;
  return document;
}

void Cache::keep(std::uint64_t key, const Tokens& tokens, const CachedDocument& document) const {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.tokens = static_cast<std::uint32_t>(tokens.size());
  header.key = key;
  header.state_bytes = document.state.size();
  header.prefill_seconds = document.prefill_seconds;
  NewFile file(state_path(key), kRemedy);
  std::vector<std::byte> content(tokens.size() * sizeof(Token) + document.state.size());
  std::memcpy(content.data(), tokens.data(), tokens.size() * sizeof(Token));
  std::memcpy(content.data() + tokens.size() * sizeof(Token), document.state.data(), document.state.size());
  header.checksum = hash_bytes(content);
  file.write(std::as_bytes(std::span(&header, 1)));
  file.write(content);
  file.commit();
}

void Cache::require_room(std::uint64_t bytes) const {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(folder_, error);
  if (error || space.available >= bytes) return;
  throw Error(Status::io,
              fmt::format("cache {} has no room ({} needed, {} free): {}", folder_, byte_count(static_cast<double>(bytes)),
                          byte_count(static_cast<double>(space.available)), kRemedy));
}

}  // namespace tactic::program
