// Files that are there whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tactic::program {

// Writes beside `path` and takes its name in commit(); without commit() nothing is left. Every failure throws Error(io) that
// names the file, the system's reason and `remedy`.
class NewFile {
 public:
  NewFile(std::string path, std::string remedy);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  void commit();

 private:
  [[noreturn]] void fail(int code) const;

  std::string path_;
  std::string temporary_;
  std::string remedy_;
  int descriptor_ = -1;
};

void write_text_file(const std::string& path, std::string_view text, const std::string& remedy);

// A file's bytes, mapped read-only.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error(io); an empty file is an empty span
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// 64-bit hash for keys and checksums (not against an adversary). `state` chains calls.
std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t state = 0x9e3779b97f4a7c15ull);
inline std::uint64_t hash_text(std::string_view text, std::uint64_t state = 0x9e3779b97f4a7c15ull) {
  return hash_bytes(std::as_bytes(std::span(text.data(), text.size())), state);
}

}  // namespace tactic::program
