// Settings by name.
#include "settings.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/error.h"
#include "version.h"

namespace tactic::llama {
namespace {

TEST(LlamaSettings, EnvironmentIsReadAndABadValueIsNamedAndLeftOut) {
  setenv("TACTIC_MASS", "1.5", 1);
  setenv("TACTIC_CLUSTER_SIZE", "16", 1);
  std::vector<std::string> complaints;
  const Settings settings = Settings::from_environment(complaints);
  unsetenv("TACTIC_MASS");
  unsetenv("TACTIC_CLUSTER_SIZE");
  ASSERT_EQ(complaints.size(), 1u);
  EXPECT_EQ(complaints[0], "TACTIC_MASS=1.5: mass is 1.5, must be in (0, 1]; keeping " + *Settings{}.get("mass"));
  EXPECT_EQ(settings.options().cluster_size, 16);
}

TEST(LlamaSettings, ValuesThatAreOnlyValidTogetherAreTakenInAnyOrder) {
  setenv("TACTIC_CLUSTER_SIZE", "256", 1);
  setenv("TACTIC_RECLUSTER_TOKENS", "8192", 1);
  std::vector<std::string> complaints;
  const Settings settings = Settings::from_environment(complaints);
  unsetenv("TACTIC_CLUSTER_SIZE");
  unsetenv("TACTIC_RECLUSTER_TOKENS");
  EXPECT_TRUE(complaints.empty());
  EXPECT_EQ(settings.options().cluster_size, 256);
  EXPECT_EQ(settings.options().recluster_tokens, 8192);
}

TEST(LlamaSettings, MethodBringsItsPipelinesDefaultsButNotOverWhatWasSet) {
  Settings settings;
  settings.set("iterations", "5");
  settings.set("method", "paper");
  EXPECT_EQ(settings.options().metric, Metric::l2);
  EXPECT_EQ(settings.options().iterations, 5);
  settings.set("method", "full");
  EXPECT_EQ(settings.mode(), Mode::full);
  EXPECT_EQ(settings.options().metric, Metric::l2) << "full must not change what the index was built with";
  settings.set("method", "tactic");
  EXPECT_EQ(settings.options().metric, Metric::query);
}

TEST(LlamaSettings, PresetForgetsWhatWasSetByName) {
  Settings settings;
  settings.set("iterations", "5");
  settings.set("preset", "paper");
  EXPECT_EQ(settings.options().iterations, paper_options().iterations);
  EXPECT_EQ(settings.options().metric, Metric::l2);
  settings.set("preset", "tactic");
  EXPECT_EQ(settings.options().iterations, Options{}.iterations);
}

TEST(LlamaSettings, TextThatIsNoValueIsRefused) {
  Settings settings;
  for (const auto& [name, value] : {std::pair{"mass", "0.9x"},
                                    {"mass", ""},
                                    {"method", "fast"},
                                    {"verify", "2"},
                                    {"log", "3"},
                                    {"max_rows", "0"},
                                    {"cluster_size", "1e9"},
                                    {"nonsense", "1"}}) {
    EXPECT_THROW(settings.set(name, value), Error) << name << "=" << value;
  }
  EXPECT_EQ(settings.generation(), Settings{}.generation());
}

TEST(LlamaSettings, EveryValueReadsBackAsItPrints) {
  Settings settings;
  for (const char* name :
       {"mass", "cluster_size", "metric", "verify", "seed", "outlier_share", "fit_window", "method", "log", "max_rows"}) {
    const std::string value = *settings.get(name);
    settings.set(name, value);
    EXPECT_EQ(*settings.get(name), value) << name;
  }
}

TEST(LlamaVersion, OnlyListedVersionsAreHooked) {
  EXPECT_EQ(refusal("0.25.3"), nullptr);
  EXPECT_EQ(refusal("0.25.3-dirty"), nullptr);
  for (const char* other : {"0.25.2", "0.25.4", "0.26.0", "0.9.4", "", "0.25.30"}) {
    ASSERT_NE(refusal(other), nullptr) << other;
    EXPECT_NE(std::string(refusal(other)).find("0.25.3"), std::string::npos);
  }
  EXPECT_EQ(layout_mismatch(), nullptr);
}

}  // namespace
}  // namespace tactic::llama
