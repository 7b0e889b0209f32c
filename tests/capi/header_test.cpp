// The headers: tactic.h from C, tactic.hpp as a user writes it, both beside the library's own code.
#include "core/options.h"
#include "fixture.h"
#include "sequence/sequence.h"
#include "tactic/tactic.hpp"

extern "C" int capi_from_c(float* mean_of_two);
extern "C" const void* capi_every_function(std::size_t i);

namespace tactic::test {
namespace {

TEST(Headers, CCodeLinksAndRuns) {
  float mean = 0;
  EXPECT_EQ(capi_from_c(&mean), 0);
  EXPECT_EQ(mean, 2);
  EXPECT_NE(capi_every_function(0), nullptr);
}

TEST(Headers, OptionDefaultsOfCppAndCAreTheSame) {
  tactic_options c;
  ASSERT_WORKS(tactic_options_init(&c, sizeof c));
  const tactic_options cpp = tactic::options().to_c();
  EXPECT_EQ(std::memcmp(&c, &cpp, sizeof c), 0);
  ASSERT_WORKS(tactic_options_init_paper(&c, sizeof c));
  const tactic_options paper = tactic::options::paper().to_c();
  EXPECT_EQ(std::memcmp(&c, &paper, sizeof c), 0);
}

kv_view view_of(const TopicCache& cache) {
  const tactic_kv_view c = cache.view();
  const auto rows_of = [](const tactic_rows& r) {
    return tactic::rows{r.data, static_cast<dtype>(r.dtype), r.dim, r.token_stride, r.head_stride, r.block_stride};
  };
  return {.k = rows_of(c.k), .v = rows_of(c.v), .tokens = c.tokens, .kv_heads = c.kv_heads};
}

class CppHeader : public ::testing::Test {
 protected:
  CppHeader() : cache(600), team(2), own(sequence_config{.layer = {4, 2, 64}, .layers = 2, .choice = small()}) {
    for (int i = 0; i < 20; ++i) own.observe(1, cache.query());
    clustered = own.update(team, 1, view_of(cache)).clustered;
  }
  static options small() {
    options o;
    o.cluster_size = 8;
    o.min_context = 256;
    o.recluster_tokens = 128;
    return o;
  }

  TopicCache cache;
  context team;
  sequence own;
  std::int64_t clustered = 0;
};

TEST_F(CppHeader, WrapsTheLifeOfASequence) {
  EXPECT_EQ(clustered, 600 - 4 - 64);
  EXPECT_EQ(own.clustered(1), std::make_pair(std::int64_t{4}, std::int64_t{536}));
  EXPECT_EQ(own.get_options().cluster_size, 8);
  const std::vector<float> q = cache.query();
  std::vector<float> out(4 * 64);
  std::vector<float> lse(4);
  report step;
  step.want_token_bits = true;
  own.attend(team, 1, view_of(cache), {.q = q, .out = out, .lse = lse}, &step);
  EXPECT_EQ(step.attended.size(), 2u);
  EXPECT_EQ(step.token_bits.size(), 2u * 10);
  EXPECT_LT(step.bytes, step.dense_bytes);

  sequence fork = own.fork();
  fork.truncate(100);
  EXPECT_EQ(fork.clustered(1).second, 0);
  EXPECT_EQ(own.clustered(1).second, 536);
  const std::vector<std::byte> saved = own.save();
  fork.load(saved);
  std::vector<float> again(4 * 64);
  fork.attend(team, 1, view_of(cache), {.q = q, .out = again});
  EXPECT_EQ(again, out);
  own.clear();
  EXPECT_EQ(own.index_bytes(), 0u);
}

TEST_F(CppHeader, FailuresThrowWithStatusAndMessage) {
  const std::vector<float> q = cache.query();
  try {
    own.observe(9, q);
    FAIL() << "did not throw";
  } catch (const tactic::error& e) {
    EXPECT_EQ(e.status(), TACTIC_INVALID_ARGUMENT);
    EXPECT_STREQ(e.what(), "layer is 9, must be in [0, 1]");
  }
  std::vector<float> small_out(255);
  EXPECT_THROW(own.attend(team, 0, view_of(cache), {.q = q, .out = small_out}), tactic::error);
  EXPECT_THROW(own.observe(0, std::span(q).first(255)), tactic::error);
  EXPECT_THROW(own.load("/no/such/file"), tactic::error);
  options bad;
  bad.mass = 3;
  EXPECT_THROW(own.set_options(bad), tactic::error);
  EXPECT_THROW(context(-1), tactic::error);
}

}  // namespace
}  // namespace tactic::test
