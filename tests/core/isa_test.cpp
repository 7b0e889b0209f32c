// The instruction set: forced by the environment (in a process of its own, since it is read once) and by tests.
#include "core/isa.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/error.h"

namespace tactic {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512};

// Prints what active_isa() says or how it fails, and exits.
[[noreturn]] void report_isa() {
  try {
    std::fprintf(stderr, "isa=%s.", name_of(active_isa()));
    std::exit(0);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s", error.what());
    std::exit(error.status() == Status::invalid_argument ? 3 : 4);
  }
}

class IsaEnvironment : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");  // starts the program anew: nothing has asked for the ISA there
    const char* old = std::getenv("TACTIC_ISA");
    had_ = old != nullptr;
    if (had_) old_ = old;
  }
  void TearDown() override {
    if (had_) {
      setenv("TACTIC_ISA", old_.c_str(), 1);
    } else {
      unsetenv("TACTIC_ISA");
    }
  }

 private:
  bool had_ = false;
  std::string old_;
};

TEST_F(IsaEnvironment, NamesTheInstructionSetToUse) {
  for (const Isa isa : kAll) {
    setenv("TACTIC_ISA", name_of(isa), 1);
    if (supported(isa)) {
      EXPECT_EXIT(report_isa(), testing::ExitedWithCode(0), std::string("isa=") + name_of(isa) + "\\.");
    } else {
      EXPECT_EXIT(report_isa(), testing::ExitedWithCode(3), std::string("TACTIC_ISA=") + name_of(isa) + ": this processor");
    }
  }
}

TEST_F(IsaEnvironment, UnsetMeansTheBestOfTheProcessor) {
  unsetenv("TACTIC_ISA");
  Isa best = Isa::baseline;
  for (const Isa isa : kAll) best = supported(isa) ? isa : best;
  EXPECT_EXIT(report_isa(), testing::ExitedWithCode(0), std::string("isa=") + name_of(best) + "\\.");
}

TEST_F(IsaEnvironment, UnknownNameIsAnErrorThatListsTheNames) {
  setenv("TACTIC_ISA", "sse9", 1);
  EXPECT_EXIT(report_isa(), testing::ExitedWithCode(3), "TACTIC_ISA=sse9 .*use baseline, avx2 or avx512");
}

TEST(Isa, ForcedOneIsActive) {
  const Isa before = active_isa();
  for (const Isa isa : kAll) {
    if (!supported(isa)) {
      EXPECT_THROW(force_isa(isa), Error);
      continue;
    }
    force_isa(isa);
    EXPECT_EQ(active_isa(), isa);
  }
  force_isa(before);
}

TEST(Isa, BaselineIsAlwaysSupported) { EXPECT_TRUE(supported(Isa::baseline)); }

}  // namespace
}  // namespace tactic
