// The document of the user: read, checked, made to fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tactic::program {

using Token = std::int32_t;
using Tokens = std::vector<Token>;

// What to do with a document that is longer than the context.
enum class Truncate { none, middle };

// Offset of the first byte that is not UTF-8 (overlong forms, surrogates and values past U+10FFFF are not); npos if all is.
std::size_t first_invalid_utf8(std::string_view text);
// Length of the longest prefix that ends with a complete character: the rest waits for its other bytes.
std::size_t complete_utf8(std::string_view text);

// The file's text without a byte order mark. Throws Error(io) when it can't be read, Error(corrupt) when it is empty (or white
// space only) or not UTF-8, naming the file and the place.
std::string read_document(const std::string& path);

// The document's tokens if they fit into `room`; cut out of the middle for Truncate::middle (`mark` stands at the cut). Throws
// Error(invalid_argument) that says by how much it is too long. `context` and `reserved` tokens are for that message.
Tokens fit_document(Tokens document, std::int64_t room, Truncate truncate, const Tokens& mark, std::int64_t context);

}  // namespace tactic::program
