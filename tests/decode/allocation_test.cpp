// A warm decode step allocates nothing, over 200 steps of a growing context; a failed allocation of a cold one does no harm.
#include <gtest/gtest.h>

#include "support/count_new.h"
#include "support/layer.h"

namespace tactic::test {
namespace {

struct Way {
  const char* name;
  Method method;
};

class Allocation : public testing::TestWithParam<Way> {};

TEST_P(Allocation, WarmStepsDoNotAllocate) {
  LayerSpec spec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 1500}, .recent = 300};
  Options options;
  if (GetParam().method == Method::paper) options = paper_options();
  options.method = GetParam().method;
  options.min_context = 256;
  LayerCase layer(spec);
  const auto team = make_thread_team(2);
  const WorkspacePtr workspace = make_workspace();
  std::vector<std::vector<float>> queries;
  for (int i = 0; i < 200; ++i) queries.push_back(layer.draw_queries());
  std::vector<float> out(8 * 64), lse(8), mass(8);
  std::vector<std::int64_t> attended(2);
  KvView kv = layer.kv().view();
  std::int64_t before = 0;
  for (int i = 0; i < 200; ++i) {
    kv.tokens = 1300 + i;
    const Query query{queries[static_cast<std::size_t>(i)].data(), spec.kv.shape, layer.kv().params()};
    StepReport report;
    report.attended = attended;
    report.estimated_mass = mass;
    ASSERT_EQ(decode_step(*team, *workspace, query, kv, &layer.index(), options, out.data(), lse.data(), &report), Status::ok);
    if (i == 0) before = news.load();
  }
  EXPECT_EQ(news.load() - before, 0);
}

// Each allocation of a cold step in turn; the same workspace then serves the next step as if nothing had been.
TEST_P(Allocation, AFailedOneIsThrownAndTheNextStepIsRight) {
  LayerSpec spec{.kv = {.shape = {8, 2, 64, 64}, .tokens = 1500}};
  Options options;
  if (GetParam().method == Method::paper) options = paper_options();
  options.method = GetParam().method;
  options.min_context = 256;
  LayerCase layer(spec);
  const auto team = make_thread_team(3);
  const Query query{layer.kv().q().data(), spec.kv.shape, layer.kv().params()};
  std::vector<float> out(8 * 64), expected(8 * 64);
  const auto step = [&](Workspace& workspace, std::vector<float>& to) {
    return decode_step(*team, workspace, query, layer.kv().view(), &layer.index(), options, to.data(), nullptr, nullptr);
  };
  ASSERT_EQ(step(*make_workspace(), expected), Status::ok);
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    const WorkspacePtr workspace = make_workspace();
    try {
      const FailNew fail(failures);
      step(*workspace, out);
      failed = false;
    } catch (const std::bad_alloc&) {
    }
    ASSERT_EQ(step(*workspace, out), Status::ok);
    ASSERT_EQ(out, expected) << "allocation " << failures;
  }
  EXPECT_GT(failures, 5);
}

TEST(AllocationCounter, Counts) {
  const std::int64_t before = news.load();
  const std::vector<int> some(100, 1);
  const Buffer<float> more(100);
  EXPECT_EQ(news.load() - before, 2);
  const FailNew fail(1);
  EXPECT_NO_THROW(std::make_unique<int>(1));
  EXPECT_THROW(std::make_unique<int>(2), std::bad_alloc);
  EXPECT_NO_THROW(std::make_unique<int>(3));
}

INSTANTIATE_TEST_SUITE_P(Methods, Allocation,
                         testing::Values(Way{"tactic", Method::tactic}, Way{"paper", Method::paper}, Way{"full", Method::full}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tactic::test
