// Damaged files and odd options: a clean error or a valid result, never a crash. Seeded; a few seconds.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "arguments.h"
#include "capture.h"
#include "core/error.h"
#include "safetensors.h"
#include "sequence/sequence.h"
#include "state.h"

namespace tactic::program {
namespace {

constexpr std::uint32_t kSeed = 20240611;
constexpr double kSeconds = 1.5;  // for each test

using Bytes = std::vector<std::uint8_t>;

// Flips, edge values, cuts, doubled stretches; half of the edits fall into the first bytes, where headers are.
void damage(Bytes& bytes, std::mt19937& random) {
  constexpr std::array<std::uint8_t, 6> kEdges = {0, 1, 0x7f, 0x80, 0xff, '"'};
  for (std::uint32_t edits = 1 + random() % 4; edits > 0 && !bytes.empty(); --edits) {
    const std::size_t within = random() % 2 == 0 ? std::min<std::size_t>(bytes.size(), 600) : bytes.size();
    const std::size_t at = random() % within;
    switch (random() % 5) {
      case 0:
        bytes[at] ^= static_cast<std::uint8_t>(1u << (random() % 8));
        break;
      case 1:
        bytes[at] = kEdges[random() % kEdges.size()];
        break;
      case 2:
        if (random() % 4 == 0) bytes.resize(at);
        break;
      case 3:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::uint8_t>(random()));
        break;
      default:
        bytes[at] = static_cast<std::uint8_t>('0' + random() % 10);  // changes numbers of a JSON header
    }
  }
}

template <typename F>
int survive(const Bytes& good, F use) {
  std::mt19937 random(kSeed);
  const auto start = std::chrono::steady_clock::now();
  int rounds = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < kSeconds) {
    Bytes bytes = good;
    damage(bytes, random);
    try {
      use(bytes);
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
    ++rounds;
  }
  return rounds;
}

Bytes file_bytes(const std::string& path) {
  const MappedFile file(path);
  Bytes bytes(file.bytes().size());
  std::memcpy(bytes.data(), file.bytes().data(), bytes.size());
  return bytes;
}

// A capture of one layer: 2 query heads on 1 KV head of 64, 6 tokens, 2 of them steps.
std::string write_small_capture() {
  const std::vector<float> q(std::size_t{2} * 2 * 64, 0.5f);
  const std::vector<std::uint16_t> rows(std::size_t{6} * 64, 0x3c00);
  const std::vector<std::int32_t> tokens = {1, 2, 3, 4, 5, 6};
  Tensors out;
  out.metadata = {
      {"format", "tactic-capture-1"}, {"scale", "0.125"}, {"softcap", "0"}, {"rotary_layout", "none"}, {"model", "m"}};
  out.tensors.push_back({.name = "q", .type = "F32", .shape = {2, 1, 2, 64}, .data = std::as_bytes(std::span(q))});
  out.tensors.push_back({.name = "prompt_q", .type = "F32", .shape = {2, 1, 2, 64}, .data = std::as_bytes(std::span(q))});
  out.tensors.push_back({.name = "k", .type = "F16", .shape = {1, 1, 6, 64}, .data = std::as_bytes(std::span(rows))});
  out.tensors.push_back({.name = "v", .type = "F16", .shape = {1, 1, 6, 64}, .data = std::as_bytes(std::span(rows))});
  out.tensors.push_back({.name = "tokens", .type = "I32", .shape = {6}, .data = std::as_bytes(std::span(tokens))});
  const std::string path = testing::TempDir() + "tactic_fuzz.safetensors";
  write_safetensors(path, out);
  return path;
}

TEST(Fuzz, DamagedCapturesAreRefusedOrReadWithinTheirBounds) {
  const std::string path = write_small_capture();
  ASSERT_EQ(Capture::read(path).info().tokens(), 6);
  const std::string damaged = testing::TempDir() + "tactic_fuzz_damaged.safetensors";
  float sum = 0;
  const int rounds = survive(file_bytes(path), [&](const Bytes& bytes) {
    write_text_file(damaged, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "");
    const Capture capture = Capture::read(damaged);
    const CaptureInfo& info = capture.info();
    for (int layer = 0; layer < info.layers; ++layer) {  // whatever was accepted can be read to its end
      for (const float x : capture.q(info.steps - 1, layer)) sum += x;
      const KvView kv = capture.kv(layer, info.tokens());
      sum += static_cast<float>(*(row(kv, kv.v, info.tokens() - 1, info.shape.kv_heads - 1) + 2 * info.shape.v_head_dim - 1));
    }
  });
  EXPECT_GT(rounds, 100);
  RecordProperty("sum", std::to_string(sum));
}

TEST(Fuzz, DamagedEngineStatesAreRefusedOrConverted) {
  Bytes state;
  const auto put = [&](auto value) {
    state.resize(state.size() + sizeof value);
    std::memcpy(state.data() + state.size() - sizeof value, &value, sizeof value);
  };
  put(0xaf143cd8u), put(0);
  put(1u), put(1u), put(0), put(1u), put(0), put(0u), put(1u), put(1), put(std::uint64_t{4}), put(7u), put(1),
      put(std::uint64_t{4}), put(7u);
  ASSERT_FALSE(transpose_v(state).empty());
  EXPECT_GT(survive(state, [](const Bytes& bytes) { transpose_v(bytes); }), 100);
}

TEST(Fuzz, DamagedIndexesAreRefusedAndLeaveTheSequenceAsItWas) {
  const Shape shape = {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .v_head_dim = 64};
  constexpr int kTokens = 1100;
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(std::size_t{kTokens} * 64), q(std::size_t{128} * 2 * 64);
  for (float& x : rows) x = normal(random);
  for (float& x : q) x = normal(random);
  const auto bytes_of_rows = std::as_bytes(std::span(rows));
  const Rows view = {
      .data = bytes_of_rows.data(), .type = DType::f32, .dim = 64, .token_stride = 256, .head_stride = 256, .block_stride = 0};
  const KvView kv = {.k = view, .v = view, .kv_heads = 1, .tokens = kTokens};
  SequenceConfig config{.layers = 1, .shape = shape, .params = {.scale = 0.125f}, .rotary = {}, .options = {}};
  config.rotary.layout = Rotary::Layout::none;
  Sequence sequence(config);
  sequence.observe(0, q.data(), 128, 128, 64);
  const auto team = make_serial_team();
  const auto workspace = make_workspace();
  ASSERT_GT(sequence.update(*team, *workspace, 0, kv, true).clustered, 0);
  std::stringstream saved;
  sequence.save(saved);
  const std::string good = saved.str();
  Sequence other(config);
  const int rounds = survive(Bytes(good.begin(), good.end()), [&](const Bytes& bytes) {
    std::istringstream in(std::string(bytes.begin(), bytes.end()));
    try {
      other.load(in);
    } catch (const Error&) {
      EXPECT_EQ(other.layer(0).segments.empty(), true);
      throw;
    }
    other.clear();
  });
  EXPECT_GT(rounds, 100);
}

TEST(Fuzz, OddOptionsEndWithOneLineAndAnErrorCode) {
  const std::vector<std::string> words = {"run",
                                          "capture",
                                          "inspect",
                                          "bench",
                                          "attention",
                                          "--model",
                                          "-m",
                                          "--file",
                                          "-f",
                                          "nowhere.gguf",
                                          "nowhere.txt",
                                          "--mass",
                                          "-p",
                                          "0.9",
                                          "nan",
                                          "inf",
                                          "-1",
                                          "1e999",
                                          "--method",
                                          "paper",
                                          "stock",
                                          "--cluster-size",
                                          "--tokens",
                                          "-n",
                                          "99999999999999999999",
                                          "--threads",
                                          "--cache",
                                          "--no-cache",
                                          "--no-cache=maybe",
                                          "--truncate",
                                          "middle",
                                          "--json",
                                          "/nonexistent/x.json",
                                          "--",
                                          "-",
                                          "",
                                          "\xff\xfe",
                                          "--compare",
                                          "--seed",
                                          "--capture",
                                          "--steps",
                                          "--output",
                                          "-o",
                                          "--share",
                                          "=",
                                          "--mass="};
  std::mt19937 random(kSeed);
  const auto start = std::chrono::steady_clock::now();
  int rounds = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < kSeconds) {
    std::vector<std::string> chosen = {"tactic"};
    for (std::uint32_t count = random() % 9; count > 0; --count) chosen.push_back(words[random() % words.size()]);
    // A benchmark needs no option: one that is out of range keeps it from running.
    if (std::find(chosen.begin(), chosen.end(), "bench") != chosen.end()) chosen.insert(chosen.end(), {"--rounds", "0"});
    std::vector<const char*> arguments;
    std::string line;
    for (const auto& word : chosen) {
      arguments.push_back(word.c_str());
      line += word + ' ';
    }
    testing::internal::CaptureStderr();
    const int code = parse_and_run(static_cast<int>(arguments.size()), arguments.data());
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_TRUE(code == kRuntimeExit || code == kUsageExit) << line << code;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << line << said;
    EXPECT_TRUE(said.starts_with("tactic: ")) << line << said;
    ++rounds;
  }
  EXPECT_GT(rounds, 100);
}

}  // namespace
}  // namespace tactic::program
