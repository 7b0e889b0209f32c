// The safetensors reader: what was written comes back, and nothing else is accepted.
#include "safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <vector>

#include "core/error.h"

namespace tactic::program {
namespace {

using Bytes = std::vector<std::byte>;

Bytes file_of(const std::string& header, std::size_t data_bytes, std::int64_t claimed = -1) {
  Bytes bytes(8 + header.size() + data_bytes);
  const std::uint64_t length = claimed < 0 ? header.size() : static_cast<std::uint64_t>(claimed);
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

std::string refusal(const Bytes& bytes) {
  try {
    parse_safetensors(bytes);
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::corrupt);
    return error.what();
  }
  return "accepted";
}

void expect_refusal(const Bytes& bytes, const std::string& part) {
  const std::string message = refusal(bytes);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(Safetensors, ComesBackAsWritten) {
  const std::string path = testing::TempDir() + "tactic_tensors.safetensors";
  const std::vector<float> a = {1.5f, -2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  const std::vector<std::uint16_t> b = {1, 2, 3};
  Tensors out;
  out.metadata = {{"model", "quote \" and \u00e9"}};
  out.tensors.push_back({.name = "a", .type = "F32", .shape = {2, 3}, .data = std::as_bytes(std::span(a))});
  out.tensors.push_back({.name = "b", .type = "F16", .shape = {3}, .data = std::as_bytes(std::span(b))});
  write_safetensors(path, out);
  const MappedFile file(path);
  const Tensors in = parse_safetensors(file.bytes());
  EXPECT_EQ(in.metadata, out.metadata);
  ASSERT_NE(in.find("a"), nullptr);
  ASSERT_NE(in.find("b"), nullptr);
  EXPECT_EQ(in.find("a")->shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_TRUE(std::ranges::equal(values_of<float>(*in.find("a")), a));
  EXPECT_TRUE(std::ranges::equal(values_of<std::uint16_t>(*in.find("b")), b));
}

TEST(Safetensors, RefusesAFileShorterThanItsHeader) {
  expect_refusal(Bytes(7), "shorter");
  expect_refusal(file_of("{}", 0, 3), "claims 3 bytes of 2");
  expect_refusal(file_of("{}", 0, std::int64_t{1} << 62), "claims");
}

TEST(Safetensors, RefusesAHeaderThatIsNoJsonObject) {
  expect_refusal(file_of("{\"a\":", 0), "not a JSON object");
  expect_refusal(file_of("[1]", 0), "not a JSON object");
}

TEST(Safetensors, RefusesEntriesOfTheWrongKind) {
  expect_refusal(file_of("{\"a\":7}", 0), "no object");
  expect_refusal(file_of("{\"a\":{}}", 0), "no dtype");
  expect_refusal(file_of("{\"a\":{\"dtype\":\"Q3\"}}", 0), "unknown dtype");
  expect_refusal(file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4), "impossible shape");
  expect_refusal(file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), "data_offsets");
  expect_refusal(file_of("{\"__metadata__\":{\"a\":1}}", 0), "no string");
}

TEST(Safetensors, RefusesAShapeWhoseBytesOverflow) {
  const std::string huge = "1099511627776";  // 2^40
  expect_refusal(file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[" + huge + "," + huge + "],\"data_offsets\":[0,0]}}", 0),
                 "impossible shape");
}

TEST(Safetensors, RefusesRangesThatDoNotFit) {
  const auto one = [](const std::string& offsets) {
    return "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" + offsets + "}}";
  };
  EXPECT_EQ(refusal(file_of(one("[0,8]"), 8)), "accepted");
  expect_refusal(file_of(one("[0,8]"), 4), "past the end");
  expect_refusal(file_of(one("[8,0]"), 8), "past the end");
  expect_refusal(file_of(one("[0,4]"), 4), "4 bytes where its shape needs 8");
  expect_refusal(file_of(one("[2,10]"), 10), "not aligned");
  expect_refusal(file_of(one("[4,12]"), 12), "gaps");
  expect_refusal(file_of(one("[0,8]"), 9), "belong to no tensor");
}

TEST(Safetensors, RefusesTensorsThatOverlap) {
  const std::string entry = ":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}";
  expect_refusal(file_of("{\"a\"" + entry + ",\"b\"" + entry + "}", 4), "overlap");
}

TEST(NewFile, LeavesNothingWithoutACommit) {
  const std::string folder = testing::TempDir() + "tactic_new_file";
  std::filesystem::create_directories(folder);
  { NewFile(folder + "/a", "remedy").write("text"); }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
}

TEST(NewFile, NamesFileAndRemedyWhenItCannotBeWritten) {
  try {
    NewFile("/nonexistent-folder/a", "do this");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "/nonexistent-folder/a cannot be written (No such file or directory): do this");
  }
}

TEST(Hash, ChangesWithEveryByteAndTheLength) {
  std::vector<std::byte> bytes(100);
  const std::uint64_t zero = hash_bytes(bytes);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = std::byte{1};
    EXPECT_NE(hash_bytes(bytes), zero) << "byte " << i;
    bytes[i] = std::byte{0};
  }
  EXPECT_NE(hash_bytes(std::span(bytes).first(99)), zero);
}

}  // namespace
}  // namespace tactic::program
