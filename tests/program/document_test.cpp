// Documents: what is text, and what fits.
#include "document.h"

#include <gtest/gtest.h>

#include <fstream>
#include <numeric>
#include <string>

#include "core/error.h"

namespace tactic::program {
namespace {

constexpr std::size_t kAllValid = std::string_view::npos;

TEST(Utf8, AcceptsEveryLength) { EXPECT_EQ(first_invalid_utf8("a\u00e9\u20ac\U0001f600\U0010ffff"), kAllValid); }

TEST(Utf8, NamesTheFirstBadByte) {
  EXPECT_EQ(first_invalid_utf8("ab\xff"), 2u);            // no such first byte
  EXPECT_EQ(first_invalid_utf8("ab\x80"), 2u);            // continuation without a start
  EXPECT_EQ(first_invalid_utf8("a\xc0\xaf"), 1u);         // overlong
  EXPECT_EQ(first_invalid_utf8("a\xe0\x80\xaf"), 1u);     // overlong
  EXPECT_EQ(first_invalid_utf8("\xed\xa0\x80"), 0u);      // surrogate
  EXPECT_EQ(first_invalid_utf8("\xf4\x90\x80\x80"), 0u);  // past U+10FFFF
  EXPECT_EQ(first_invalid_utf8("abc\xe2\x82"), 3u);       // cut inside a character
  EXPECT_EQ(first_invalid_utf8("\xe2\x28\xa1xx"), 0u);    // second byte is none
  EXPECT_EQ(first_invalid_utf8("\xe2\x82\x28xx"), 0u);    // third byte is none
}

TEST(Utf8, KeepsBackAnIncompleteCharacter) {
  EXPECT_EQ(complete_utf8("ab"), 2u);
  EXPECT_EQ(complete_utf8("ab\xe2"), 2u);
  EXPECT_EQ(complete_utf8("ab\xe2\x82"), 2u);
  EXPECT_EQ(complete_utf8("ab\xe2\x82\xac"), 5u);
  EXPECT_EQ(complete_utf8(""), 0u);
}

class DocumentFile : public testing::Test {
 protected:
  std::string write(const std::string& text) {
    const std::string path = testing::TempDir() + "tactic_document.txt";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string refusal(const std::string& text) {
    try {
      read_document(write(text));
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(DocumentFile, IsReadWithoutItsByteOrderMark) { EXPECT_EQ(read_document(write("\xef\xbb\xbfhello\n")), "hello\n"); }

TEST_F(DocumentFile, OfWhiteSpaceIsRefusedAsEmpty) {
  EXPECT_NE(refusal("").find("is empty"), std::string::npos);
  EXPECT_NE(refusal(" \n\t ").find("is empty"), std::string::npos);
}

TEST_F(DocumentFile, ThatIsNoTextIsRefusedWithThePlace) {
  const std::string message = refusal("caf\xe9 au lait");
  EXPECT_NE(message.find("not UTF-8"), std::string::npos);
  EXPECT_NE(message.find("offset 3"), std::string::npos);
}

Tokens count_to(int n) {
  Tokens tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

TEST(Fit, LeavesADocumentThatFits) { EXPECT_EQ(fit_document(count_to(10), 10, Truncate::middle, {-1}, 20), count_to(10)); }

TEST(Fit, CutsTheMiddleAndMarksTheCut) {
  EXPECT_EQ(fit_document(count_to(10), 6, Truncate::middle, {-1}, 20), (Tokens{0, 1, 2, -1, 8, 9}));
  EXPECT_EQ(fit_document(count_to(10), 7, Truncate::middle, {-1}, 20), (Tokens{0, 1, 2, -1, 7, 8, 9}));
}

TEST(Fit, SaysByHowMuchADocumentIsTooLong) {
  try {
    fit_document(count_to(10), 6, Truncate::none, {-1}, 20);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("too long by 4 tokens"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("--truncate middle"), std::string::npos);
  }
}

}  // namespace
}  // namespace tactic::program
