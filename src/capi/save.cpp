// Save and load of a sequence's index: files that are never half-written, and the caller's buffers.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <istream>
#include <ostream>
#include <streambuf>
#include <vector>

#include "capi/sequence.h"
#include "capi/structs.h"

namespace tactic::capi {
namespace {

[[noreturn]] void io_error(const std::string& what, const std::string& path, int error) {
  throw Error(Status::io, "index file '" + path + "': " + what + ": " + std::strerror(error));
}

// Bytes into a buffer, or, without one, only counted. Fails when the buffer is full.
class Sink final : public std::streambuf {
 public:
  Sink(char* buffer, std::size_t capacity) : buffer_(buffer), capacity_(capacity) {}
  std::size_t size() const { return size_; }

 private:
  std::streamsize xsputn(const char* bytes, std::streamsize count) override {
    const auto n = static_cast<std::size_t>(count);
    if (buffer_ != nullptr && n > capacity_ - size_) return 0;
    if (buffer_ != nullptr && n > 0) std::memcpy(buffer_ + size_, bytes, n);
    size_ += n;
    return count;
  }
  int_type overflow(int_type c) override {
    const char byte = traits_type::to_char_type(c);
    return xsputn(&byte, 1) == 1 ? c : traits_type::eof();
  }

  char* buffer_;
  std::size_t capacity_;
  std::size_t size_ = 0;
};

// Bytes of the caller's buffer; never written to.
class Source final : public std::streambuf {
 public:
  Source(const char* buffer, std::size_t bytes) {
    char* begin = const_cast<char*>(buffer);
    setg(begin, begin, begin + bytes);
  }
};

// A new file under a temporary name beside `path`, which takes its place on commit(); removed otherwise.
class NewFile final : public std::streambuf {
 public:
  explicit NewFile(const std::string& path) : path_(path), buffer_(kBuffer) {
    // Unique among processes and threads without state of ours; O_EXCL finds the rest out.
    const auto stamp = std::chrono::steady_clock::now().time_since_epoch().count();
    name_ = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(stamp);
    file_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0) io_error("cannot create '" + name_ + "' beside it", path, errno);
    setp(buffer_.data(), buffer_.data() + buffer_.size());
  }
  ~NewFile() override {
    if (file_ >= 0) ::close(file_);
    if (!committed_) ::unlink(name_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  int error() const { return error_; }
  void commit() {
    if (!drain() || ::fsync(file_) != 0) io_error("cannot be written", path_, error_ != 0 ? error_ : errno);
    const int closed = ::close(file_);
    file_ = -1;
    if (closed != 0) io_error("cannot be written", path_, errno);
    if (::rename(name_.c_str(), path_.c_str()) != 0) io_error("cannot be replaced", path_, errno);
    committed_ = true;
  }

 private:
  static constexpr std::size_t kBuffer = std::size_t{1} << 18;  // bytes of one write: long enough that calls cost nothing

  bool drain() {
    for (const char* at = pbase(); at < pptr();) {
      const ::ssize_t n = ::write(file_, at, static_cast<std::size_t>(pptr() - at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        error_ = errno;
        return false;
      }
      at += n;
    }
    setp(buffer_.data(), buffer_.data() + buffer_.size());
    return true;
  }
  int sync() override { return drain() ? 0 : -1; }
  int_type overflow(int_type c) override {
    if (!drain()) return traits_type::eof();
    if (!traits_type::eq_int_type(c, traits_type::eof())) sputc(traits_type::to_char_type(c));
    return traits_type::not_eof(c);
  }

  std::string path_;
  std::string name_;
  std::vector<char> buffer_;
  int file_ = -1;
  int error_ = 0;
  bool committed_ = false;
};

void save_file(const Sequence& sequence, const std::string& path) {
  NewFile file(path);
  std::ostream out(&file);
  try {
    sequence.save(out);
  } catch (const Error& e) {
    if (e.status() == Status::io && file.error() != 0) io_error("cannot be written", path, file.error());
    throw;
  }
  file.commit();
}

// Into a copy first (it shares the segments), so that bytes behind the end leave the sequence as it was, too.
void load_stream(Sequence& sequence, std::istream& in) {
  Sequence fresh = sequence;
  fresh.load(in);
  if (in.peek() != std::istream::traits_type::eof()) {
    throw Error(Status::corrupt, "index: bytes behind its end; delete it and cluster again");
  }
  sequence = std::move(fresh);
}

void load_file(Sequence& sequence, const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) io_error("cannot be read", path, EISDIR);
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) io_error("cannot be opened", path, errno != 0 ? errno : EIO);
  try {
    load_stream(sequence, in);
  } catch (const Error& e) {
    throw Error(e.status(), "index file '" + path + "': " + e.what());
  }
}

std::size_t saved_size(const Sequence& sequence) {
  Sink counter(nullptr, 0);
  std::ostream out(&counter);
  sequence.save(out);
  return counter.size();
}

}  // namespace
}  // namespace tactic::capi

using namespace tactic::capi;

tactic_status tactic_sequence_save(tactic_sequence* sequence, const char* path) {
  return guard(sequence, "sequence", [&] {
    require(path, "path");
    save_file(sequence->state, path);
  });
}

tactic_status tactic_sequence_load(tactic_sequence* sequence, const char* path) {
  return guard(sequence, "sequence", [&] {
    require(path, "path");
    load_file(sequence->state, path);
  });
}

tactic_status tactic_sequence_save_size(tactic_sequence* sequence, size_t* bytes) {
  return guard(sequence, "sequence", [&] {
    require(bytes, "bytes");
    *bytes = saved_size(sequence->state);
  });
}

tactic_status tactic_sequence_save_buffer(tactic_sequence* sequence, void* buffer, size_t capacity, size_t* written) {
  return guard(sequence, "sequence", [&] {
    require(buffer, "buffer");
    require(written, "written");
    Sink sink(static_cast<char*>(buffer), capacity);
    std::ostream out(&sink);
    try {
      sequence->state.save(out);
    } catch (const tactic::Error& e) {
      if (e.status() != tactic::Status::io) throw;
      refuse("capacity is " + std::to_string(capacity) + " bytes, must be at least " +
             std::to_string(saved_size(sequence->state)) + " (tactic_sequence_save_size)");
    }
    *written = sink.size();
  });
}

tactic_status tactic_sequence_load_buffer(tactic_sequence* sequence, const void* buffer, size_t bytes) {
  return guard(sequence, "sequence", [&] {
    require(buffer, "buffer");
    Source source(static_cast<const char*>(buffer), bytes);
    std::istream in(&source);
    load_stream(sequence->state, in);
  });
}
