// The document of the user: read, checked, made to fit.
#include "document.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/error.h"

namespace tactic::program {
namespace {

// Bytes of the character whose first byte is `lead`, 0 for a byte that starts none.
std::size_t length_of(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  if (lead >= 0xf0 && lead <= 0xf4) return 4;
  return 0;
}

// The second byte's range depends on the first: it is what excludes overlong forms, surrogates and values past U+10FFFF.
bool second_fits(unsigned char lead, unsigned char second) {
  if (lead == 0xe0) return second >= 0xa0 && second <= 0xbf;
  if (lead == 0xed) return second >= 0x80 && second <= 0x9f;
  if (lead == 0xf0) return second >= 0x90 && second <= 0xbf;
  if (lead == 0xf4) return second >= 0x80 && second <= 0x8f;
  return second >= 0x80 && second <= 0xbf;
}

unsigned char byte_at(std::string_view text, std::size_t i) { return static_cast<unsigned char>(text[i]); }

}  // namespace

std::size_t first_invalid_utf8(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const unsigned char lead = byte_at(text, i);
    const std::size_t length = length_of(lead);
    if (length == 0 || length > text.size() - i) return i;
    if (length > 1 && !second_fits(lead, byte_at(text, i + 1))) return i;
    for (std::size_t k = 2; k < length; ++k) {
      if ((byte_at(text, i + k) & 0xc0u) != 0x80u) return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

std::size_t complete_utf8(std::string_view text) {
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, text.size()); ++back) {
    const std::size_t at = text.size() - back;
    const unsigned char byte = byte_at(text, at);
    if ((byte & 0xc0u) == 0x80u) continue;
    return length_of(byte) > back ? at : text.size();
  }
  return text.size();
}

std::string read_document(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw Error(Status::io, fmt::format("document {} is a directory: name a text file with --file", path));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw Error(Status::io,
                fmt::format("document {} cannot be read ({}): name a text file with --file", path, std::strerror(errno)));
  }
  std::ostringstream content;
  content << file.rdbuf();
  std::string text = std::move(content).str();
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  if (text.find_first_not_of(" \t\r\n\f\v") == std::string::npos) {
    throw Error(Status::corrupt, fmt::format("document {} is empty: name a file with text in it", path));
  }
  if (const std::size_t bad = first_invalid_utf8(text); bad != std::string_view::npos) {
    throw Error(Status::corrupt,
                fmt::format("document {} is not UTF-8 (byte {} at offset {}): convert it, for example with iconv "
                            "-f WINDOWS-1252 -t UTF-8, or name a text file",
                            path, byte_at(text, bad), bad));
  }
  return text;
}

Tokens fit_document(Tokens document, std::int64_t room, Truncate truncate, const Tokens& mark, std::int64_t context) {
  const auto tokens = static_cast<std::int64_t>(document.size());
  if (tokens <= room) return document;
  const auto marked = static_cast<std::int64_t>(mark.size());
  if (truncate == Truncate::none || room < marked + 2) {
    throw Error(Status::invalid_argument,
                fmt::format("document is too long by {} tokens (it has {}; {} fit into the context of {} beside question and "
                            "answer): {}",
                            tokens - room, tokens, std::max<std::int64_t>(room, 0), context,
                            truncate == Truncate::none ? "shorten it, or pass --truncate middle" : "ask for fewer --tokens"));
  }
  const std::int64_t kept = room - marked;
  Tokens cut(document.begin(), document.begin() + (kept + 1) / 2);
  cut.insert(cut.end(), mark.begin(), mark.end());
  cut.insert(cut.end(), document.end() - kept / 2, document.end());
  return cut;
}

}  // namespace tactic::program
