// The methods that Tactic is compared with, in the real engine: what they attend, what is counted, what they say when they can't.
#include "baselines/baselines.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "budget_file.h"
#include "real_engine.h"

namespace tactic::test {
namespace {

constexpr int kPrompt = 600;  // tokens
constexpr int kBudget = 128;  // of a KV head

// What a trace says of one step, summed over layers.
struct Step {
  int rows = 0;
  std::int64_t prompt = -1, tokens = 0;
  double attended = 0, budget = 0, mass = 0;  // means over heads, summed over rows
  bool generated_attended = true;
  int least = 1 << 30, most = 0;  // prompt tokens of a KV head
};

void add_row(const tactic_llama_trace* row, void* user) {
  Step& step = *static_cast<Step*>(user);
  ++step.rows;
  step.prompt = row->prompt_tokens;
  step.tokens = row->tokens;
  const auto words = static_cast<std::size_t>((row->tokens + 63) / 64);
  for (int h = 0; h < row->kv_heads; ++h) {
    step.attended += static_cast<double>(row->attended[h]) / row->kv_heads;
    const auto counted = static_cast<int>(row->attended[h] - (row->tokens - row->prompt_tokens));
    step.least = std::min(step.least, counted);
    step.most = std::max(step.most, counted);
    const std::uint64_t* bits = row->token_bits + static_cast<std::size_t>(h) * words;
    std::int64_t set = 0;
    for (std::size_t w = 0; w < words; ++w) set += std::popcount(bits[w]);
    EXPECT_EQ(set, row->attended[h]);
    for (std::int64_t t = row->prompt_tokens; t < row->tokens; ++t)
      step.generated_attended = step.generated_attended && (bits[t / 64] >> (t % 64) & 1) != 0;
  }
  for (int h = 0; h < row->q_heads; ++h) {
    step.budget += static_cast<double>(row->budget[h]) / row->q_heads;
    if (row->true_mass != nullptr) step.mass += static_cast<double>(row->true_mass[h]) / row->q_heads;
  }
}

// One context, read once with everything watched; every test goes back to the prompt's end.
class LlamaBaselines : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!engine().available()) return;
    engine().set("method", "stock");
    engine().set("watch_columns", "1");
    context_ = new Context;
    context_->decode(engine().text(0, kPrompt), 0);
  }
  static void TearDownTestSuite() {
    if (engine().available()) engine().set("watch_columns", "0");
    delete context_;
  }
  void SetUp() override {
    if (!engine().available()) GTEST_SKIP() << "TACTIC_TEST_MODEL is empty";
    for (const auto& [name, value] : kSettings) engine().set(name, value);
    engine().control().drop_index();
    engine().control().reset_stats();
    back();
  }
  void TearDown() override {
    if (!engine().available()) return;
    engine().control().set_trace(nullptr, nullptr, 0);
    for (const auto& [name, value] : kSettings) engine().set(name, value);
    engine().set("method", "stock");
    engine().set("min_context", "1024");
  }

  static RealEngine& engine() { return RealEngine::instance(); }
  static Context& context() { return *context_; }
  static void back() { ASSERT_TRUE(llama_memory_seq_rm(context().memory(), 0, kPrompt, -1)); }
  static Tokens next(int count) { return engine().text(kPrompt, count); }
  // Logits along the text from the prompt's end.
  static std::vector<Logits> along(const char* method, int count) {
    engine().set("method", method);
    back();
    return context().follow(next(count), kPrompt);
  }
  // The last of `count` steps.
  static Step last_step(const char* method, int count = 3) {
    engine().set("method", method);
    back();
    context().follow(next(count - 1), kPrompt);
    Step step;
    engine().control().set_trace(add_row, &step, TACTIC_TRACE_TRUE_MASS);
    context().follow({next(count).back()}, kPrompt + count - 1);
    engine().control().set_trace(nullptr, nullptr, 0);
    EXPECT_EQ(step.rows, engine().layers());
    return step;
  }
  static std::string refusal(const char* name, const char* value) {
    return engine().control().set(name, value) == 0 ? "" : engine().control().last_error();
  }

 private:
  static inline Context* context_ = nullptr;
  static inline const std::map<const char*, const char*> kSettings = {
      {"method", "stock"},    {"budget", "128"},      {"budget_by", "all"}, {"budget_head", "kv"},
      {"sharing", "natural"}, {"min_context", "256"}, {"mass", "0.9"},      {"dense_layers", "0"}};
};

TEST_F(LlamaBaselines, EachAttendsItsBudgetAndEverythingGenerated) {
  std::map<std::string, double> mass;
  for (int i = 0; i < kBaselines; ++i) {
    const std::string name = name_of(static_cast<Baseline>(i));
    const Step step = last_step(name.c_str());
    EXPECT_EQ(step.prompt, kPrompt) << name;
    EXPECT_EQ(step.tokens, kPrompt + 3) << name;
    EXPECT_TRUE(step.generated_attended) << name;
    mass[name] = step.mass / step.rows;
    if (name == "oracle-top-p") continue;
    EXPECT_LE(step.attended / step.rows, kBudget + 3.5) << name;  // pyramid and ada round
    EXPECT_GE(step.attended / step.rows, kBudget - 16) << name;   // a page of quest may lack tokens
    if (name == "pyramidkv") {
      EXPECT_EQ(step.most, 32 + 2 * 96 - 4);  // B = 96: from 188 to 4
      EXPECT_EQ(step.least, 32 + 4);
    } else if (name != "ada-snapkv" && name != "quest") {
      EXPECT_EQ(step.least, kBudget) << name;
      EXPECT_EQ(step.most, kBudget) << name;
    }
  }
  // By construction: of all choices of B tokens for a KV head the oracle's holds the most mass of the group.
  for (const char* name : {"quest", "streamingllm", "snapkv", "h2o"}) EXPECT_LT(mass[name], mass["oracle-top-k"]) << name;
  EXPECT_GE(mass["oracle-top-p"], 0.9);
}

TEST_F(LlamaBaselines, ABudgetOfTheWholePromptEqualsFull) {
  engine().set("budget", "100%");
  const auto full = along("full", 3);
  for (const char* name : {"quest", "snapkv", "oracle-top-k"}) {
    // The same rows, summed in another order.
    EXPECT_LT(mean_divergence(full, along(name, 3)), 1e-3) << name;
  }
}

TEST_F(LlamaBaselines, SharingNoneGivesEveryQueryHeadItsOwnTokens) {
  engine().set("budget_head", "query");
  const Step step = last_step("oracle-top-k");
  EXPECT_NEAR(step.budget / step.rows, kBudget + 3, 1e-9);
  EXPECT_GT(step.attended / step.rows, kBudget + 3) << "the union of three heads";
  engine().set("sharing", "united");
  const Step united = last_step("oracle-top-k");
  EXPECT_GT(united.mass, step.mass) << "a head that attends to the union reaches more";
}

TEST_F(LlamaBaselines, DenseLayersAreDenseForEveryMethod) {
  engine().set("dense_layers", "2");
  for (const char* name : {"quest", "tactic"}) {
    Step step;
    engine().set("method", name);
    back();
    engine().control().set_trace(
        [](const tactic_llama_trace* row, void* user) {
          if (row->layer < 2) {
            EXPECT_EQ(row->sparse, 0);
          } else {
            static_cast<Step*>(user)->rows += row->sparse;
          }
        },
        &step, 0);
    context().follow(next(1), kPrompt);
    engine().control().set_trace(nullptr, nullptr, 0);
    EXPECT_EQ(step.rows, engine().layers() - 2) << name;
  }
}

TEST_F(LlamaBaselines, BudgetsOfATacticRunAreTakenFromItsFile) {
  const std::string path = ::testing::TempDir() + "/budgets.json";
  engine().control().reset_stats();
  Step sum;
  engine().set("method", "paper");
  engine().control().set_trace(add_row, &sum, 0);
  context().follow(next(4), kPrompt);
  engine().control().set_trace(nullptr, nullptr, 0);
  ASSERT_EQ(engine().control().save_budgets(path.c_str()), 0) << engine().control().last_error();
  const llama::BudgetTables tables = llama::read_budgets(path);
  EXPECT_EQ(tables.method, "paper");
  EXPECT_EQ(tables.rows, 4 * engine().layers());
  EXPECT_EQ(tables.prompt_tokens, kPrompt);
  double mean = 0, q_mean = 0;
  for (const auto& layer : tables.kv_head) {
    for (const double tokens : layer) mean += tokens / static_cast<double>(layer.size() * tables.kv_head.size());
  }
  for (const auto& layer : tables.query_head) {
    for (const double tokens : layer) q_mean += tokens / static_cast<double>(layer.size() * tables.query_head.size());
  }
  EXPECT_NEAR(mean, sum.attended / sum.rows - 2.5, 1e-6) << "1, 2, 3 and 4 generated tokens are not counted";
  EXPECT_NEAR(q_mean, sum.budget / sum.rows - 2.5, 1e-6);
  EXPECT_LE(q_mean, mean) << "a union is no smaller than its parts";

  engine().set("budget", path.c_str());
  EXPECT_NEAR(last_step("snapkv").attended / engine().layers() - 3, std::round(mean), 1e-9);
  engine().set("budget_by", "head");
  const Step by_head = last_step("streamingllm");
  EXPECT_NEAR(by_head.attended / by_head.rows - 3, mean, 0.5) << "each rounded";
  EXPECT_LT(by_head.least, by_head.most);
  std::remove(path.c_str());
}

TEST_F(LlamaBaselines, ABudgetBelowTheLeastIsRefusedWhenItIsSet) {
  engine().set("method", "quest");
  EXPECT_NE(refusal("budget", "40").find("at least 48 for quest"), std::string::npos);
  engine().set("method", "stock");
  engine().set("budget", "40");
  EXPECT_NE(refusal("method", "quest").find("at least 48 for quest"), std::string::npos);
  EXPECT_EQ(refusal("method", "snapkv"), "");
  EXPECT_NE(refusal("budget", "0.5.json").find("cannot be read"), std::string::npos);
}

TEST_F(LlamaBaselines, AShareBelowTheLeastFailsTheStepAndSaysWhy) {
  engine().set("budget", "3%");
  engine().set("method", "quest");
  EXPECT_THROW(context().follow(next(1), kPrompt), std::runtime_error);
  EXPECT_NE(std::string(engine().control().step_error()).find("budget is 18 tokens"), std::string::npos);
  EXPECT_STREQ(engine().control().step_error(), "");
}

TEST_F(LlamaBaselines, WhatWasWatchedComesBackFromAFile) {
  const std::string path = ::testing::TempDir() + "/prompt.watch";
  ASSERT_EQ(engine().control().save_watch(path.c_str()), 0) << engine().control().last_error();
  const auto kept = along("h2o", 2);
  engine().set("method", "stock");
  back();
  Context other;
  other.decode(engine().text(0, 20), 0);  // so that its layers are known
  ASSERT_TRUE(llama_memory_seq_rm(other.memory(), 0, 0, -1));
  engine().set("method", "stock");
  back();
  other.restore(context().state());
  engine().set("method", "h2o");
  EXPECT_THROW(other.follow(next(1), kPrompt), std::runtime_error);
  ASSERT_TRUE(llama_memory_seq_rm(other.memory(), 0, kPrompt, -1));
  ASSERT_EQ(engine().control().load_watch(path.c_str()), 0) << engine().control().last_error();
  EXPECT_EQ(other.follow(next(2), kPrompt), kept);
  std::filesystem::resize_file(path, 1000);
  EXPECT_EQ(engine().control().load_watch(path.c_str()), -1);
  std::remove(path.c_str());
}

TEST(BudgetFile, EveryDefectIsNamed) {
  const std::string path = ::testing::TempDir() + "/bad.json";
  const std::pair<const char*, const char*> cases[] = {
      {"{", "no JSON object"},
      {"[1]", "no JSON object"},
      {R"({"format": "other"})", "not of format"},
      {R"({"format": "tactic budgets 1"})", "no table 'kv_head'"},
      {R"({"format": "tactic budgets 1", "kv_head": [[1, 2], [3]]})", "other lengths in 'kv_head', layer 1"},
      {R"({"format": "tactic budgets 1", "kv_head": [[1, "x"]]})", "no number of tokens in 'kv_head', layer 0"},
      {R"({"format": "tactic budgets 1", "kv_head": [[1]], "query_head": [[1], [1]]})", "different numbers of layers"}};
  for (const auto& [text, defect] : cases) {
    std::ofstream(path) << text;
    try {
      llama::read_budgets(path);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), Status::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(defect), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
    }
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace tactic::test
