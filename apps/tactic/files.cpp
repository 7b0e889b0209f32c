// Files that are there whole or not at all.
#include "files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace tactic::program {

NewFile::NewFile(std::string path, std::string remedy)
    : path_(std::move(path)), temporary_(fmt::format("{}.{}.part", path_, getpid())), remedy_(std::move(remedy)) {
  struct stat there = {};
  if (stat(path_.c_str(), &there) == 0 && S_ISDIR(there.st_mode)) fail(EISDIR);
  descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail(errno);
}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

void NewFile::fail(int code) const {
  throw Error(Status::io, fmt::format("{} cannot be written ({}): {}", path_, std::strerror(code), remedy_));
}

void NewFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), std::min<std::size_t>(bytes.size(), 1u << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void NewFile::commit() {
  const int descriptor = std::exchange(descriptor_, -1);
  const int failed = close(descriptor) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0 ? errno : 0;
  if (failed == 0) return;
  unlink(temporary_.c_str());
  fail(failed);
}

void write_text_file(const std::string& path, std::string_view text, const std::string& remedy) {
  NewFile file(path, remedy);
  file.write(text);
  file.commit();
}

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  if (descriptor < 0 || fstat(descriptor, &info) != 0 || S_ISDIR(info.st_mode)) {
    const int code = descriptor >= 0 && S_ISDIR(info.st_mode) ? EISDIR : errno;
    if (descriptor >= 0) close(descriptor);
    throw Error(Status::io, fmt::format("{} cannot be read ({}): check the name", path, std::strerror(code)));
  }
  size_ = static_cast<std::size_t>(info.st_size);
  void* mapped = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int code = errno;
  close(descriptor);
  if (mapped == MAP_FAILED) {
    throw Error(Status::io, fmt::format("{} cannot be read ({}): check the name", path, std::strerror(code)));
  }
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t state) {
  // Four lanes of multiply and rotate keep up with memory; each input bit passes through at least two multiplications.
  constexpr std::uint64_t kOdd = 0x9fb21c651e98df25ull;
  std::uint64_t lanes[4] = {state, state ^ kOdd, state + kOdd, ~state};
  const std::uint64_t length = bytes.size();
  std::size_t at = 0;
  for (; at + 32 <= bytes.size(); at += 32) {
    std::uint64_t words[4];
    std::memcpy(words, bytes.data() + at, 32);
    for (int i = 0; i < 4; ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * kOdd, 29);
  }
  std::uint64_t hash = length * kOdd;
  for (const std::uint64_t lane : lanes) hash = std::rotl((hash ^ lane) * kOdd, 31);
  for (; at < bytes.size(); ++at) hash = std::rotl((hash ^ static_cast<std::uint64_t>(bytes[at])) * kOdd, 31);
  hash ^= hash >> 32;
  hash *= kOdd;
  return hash ^ (hash >> 29);
}

}  // namespace tactic::program
