// A warm decode step allocates nothing, over 200 steps of a growing context.
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

TEST(AllocationCounter, Counts) {
  const std::int64_t before = news.load();
  const std::vector<int> some(100, 1);
  const Buffer<float> more(100);
  EXPECT_EQ(news.load() - before, 2);
}

INSTANTIATE_TEST_SUITE_P(Methods, Allocation,
                         testing::Values(Way{"tactic", Method::tactic}, Way{"paper", Method::paper}, Way{"full", Method::full}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tactic::test
