// The door that users take: GGML_BACKEND_PATH in front of an unmodified program of the engine.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace tactic::test {
namespace {

struct Outcome {
  std::string out, err;
  int status = 0;
};

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// llama-completion, greedy, with `environment` in front, on a place of the text where the likeliest tokens lead clearly: at its
// beginning, a table of contents, summation order alone (TACTIC_ISA, threads) changes the answer.
Outcome complete(const std::string& environment) {
  const std::string directory = ::testing::TempDir();
  const std::string prompt = directory + "tactic-door-prompt.txt", err = directory + "tactic-door-err.txt",
                    out = directory + "tactic-door-out.txt";
  std::ofstream(prompt) << contents(variable("TACTIC_TEST_TEXT")).substr(90000, 1500);
  const std::string command =
      environment + " '" + variable("TACTIC_TEST_ENGINE") + "/llama-completion' -m '" + variable("TACTIC_TEST_MODEL") + "' -f '" +
      prompt + "' -n 12 --temp 0 -t 2 -c 1024 -no-cnv --no-display-prompt >'" + out + "' 2>'" + err + "' </dev/null";
  Outcome run;
  run.status = std::system(command.c_str());
  run.out = contents(out);
  run.err = contents(err);
  return run;
}

std::string door() { return "GGML_BACKEND_PATH='" + variable("TACTIC_LLAMA_LIB") + "' "; }

class LlamaDoor : public ::testing::Test {
 protected:
  void SetUp() override {
    if (variable("TACTIC_TEST_MODEL").empty()) GTEST_SKIP() << "TACTIC_TEST_MODEL is empty";
    if (!std::filesystem::exists(variable("TACTIC_TEST_ENGINE") + "/llama-completion")) GTEST_SKIP() << "no llama-completion";
  }
};

TEST_F(LlamaDoor, OneVariableAndTheOutputOfTheLosslessModeIsStocks) {
  const Outcome stock = complete("");
  ASSERT_EQ(stock.status, 0) << stock.err;
  EXPECT_EQ(stock.err.find("tactic:"), std::string::npos);
  ASSERT_FALSE(stock.out.empty());

  const Outcome full = complete(door() + "TACTIC_METHOD=full TACTIC_LOG=1");
  ASSERT_EQ(full.status, 0) << full.err;
  EXPECT_EQ(full.out, stock.out);
  EXPECT_NE(full.err.find("tactic: in ggml"), std::string::npos) << full.err;
}

TEST_F(LlamaDoor, BadMassIsOneClearLineAndTheEngineGoesOn) {
  const Outcome run = complete(door() + "TACTIC_MASS=1.5");
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_NE(run.err.find("tactic: TACTIC_MASS=1.5: mass is 1.5, must be in (0, 1]"), std::string::npos) << run.err;
  EXPECT_FALSE(run.out.empty());
}

TEST_F(LlamaDoor, RefusedPlugInLeavesTheEngineStock) {
  const Outcome run = complete(door() + "TACTIC_DISABLE=1");
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_NE(run.err.find("tactic: not used (ggml "), std::string::npos) << run.err;
  EXPECT_FALSE(run.out.empty());
}

}  // namespace
}  // namespace tactic::test
