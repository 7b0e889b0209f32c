// The life of a sequence through the C API: creation, queries, clustering, options, forks, rollback; every bad argument named.
#include <functional>
#include <limits>

#include "fixture.h"

namespace tactic::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Clustered {
  std::int64_t first = -1;
  std::int64_t last = -1;
  bool operator==(const Clustered&) const = default;
};

Clustered clustered(const SequencePtr& sequence, int layer = 0) {
  Clustered range;
  EXPECT_WORKS(tactic_sequence_clustered(sequence.get(), layer, &range.first, &range.last));
  return range;
}

TEST(SequenceCreation, BadFieldsAreNamed) {
  struct Bad {
    const char* message;
    std::function<void(tactic_sequence_config&, tactic_options&)> spoil;
  };
  static const float turns[] = {1, -1};
  const std::vector<Bad> bad = {
      {"config.layers is 0, must be in [1, 4096]", [](auto& c, auto&) { c.layers = 0; }},
      {"config.layers is 4097", [](auto& c, auto&) { c.layers = 4097; }},
      {"attention.q_heads is 7", [](auto& c, auto&) { c.attention.q_heads = 7; }},
      {"attention.q_heads / kv_heads is 17, must be in [1, 16]", [](auto& c, auto&) { c.attention.q_heads = 34; }},
      {"attention.head_dim is 0", [](auto& c, auto&) { c.attention.head_dim = 0; }},
      {"attention.v_head_dim is 63", [](auto& c, auto&) { c.attention.v_head_dim = 63; }},
      {"attention.scale is inf", [](auto& c, auto&) { c.attention.scale = std::numeric_limits<float>::infinity(); }},
      {"attention.scale is -1", [](auto& c, auto&) { c.attention.scale = -1; }},
      {"config.rotary_layout is 4, must be in [0, 3]", [](auto& c, auto&) { c.rotary_layout = 4; }},
      {"config.rotary_pairs is 33, must be in [0, 32]",
       [](auto& c, auto&) {
         c.rotary_layout = TACTIC_ROTARY_HALVES;
         c.rotary_pairs = 33;
       }},
      {"config.rotary_base is 0",
       [](auto& c, auto&) {
         c.rotary_layout = TACTIC_ROTARY_HALVES;
         c.rotary_base = 0;
       }},
      {"config.rotary_frequency[1] is -1",
       [](auto& c, auto&) {
         c.rotary_layout = TACTIC_ROTARY_INTERLEAVED;
         c.rotary_pairs = 2;
         c.rotary_frequency = turns;
       }},
      {"options.mass is 0, must be in (0, 1]", [](auto&, auto& o) { o.mass = 0; }},
      {"options.mass is 1.5", [](auto&, auto& o) { o.mass = 1.5f; }},
      {"options.mass is nan", [](auto&, auto& o) { o.mass = kNan; }},
      {"options.method is 3, must be in [0, 2]", [](auto&, auto& o) { o.method = 3; }},
      {"options.metric is -1", [](auto&, auto& o) { o.metric = -1; }},
      {"options.cluster_size is 1, must be in [2, 4096]", [](auto&, auto& o) { o.cluster_size = 1; }},
      {"options.joint is 2, must be 0 or 1", [](auto&, auto& o) { o.joint = 2; }},
      {"options.recluster_tokens is 15", [](auto&, auto& o) { o.recluster_tokens = 15; }},
  };
  for (const Bad& b : bad) {
    tactic_options options;
    ASSERT_WORKS(tactic_options_init(&options, sizeof options));
    tactic_sequence_config config;
    ASSERT_WORKS(tactic_sequence_config_init(&config, sizeof config));
    config.attention = {4, 2, 64, 0, 0, 0};
    config.layers = 1;
    config.options = &options;
    b.spoil(config, options);
    int place = 0;
    auto* sequence = reinterpret_cast<tactic_sequence*>(&place);  // must be replaced by null
    EXPECT_FAILS(tactic_sequence_create(&config, &sequence), TACTIC_INVALID_ARGUMENT, b.message);
    EXPECT_EQ(sequence, nullptr);
  }
  EXPECT_FAILS(tactic_sequence_create(nullptr, nullptr), TACTIC_INVALID_ARGUMENT, "sequence is null");
  tactic_sequence* sequence = nullptr;
  EXPECT_FAILS(tactic_sequence_create(nullptr, &sequence), TACTIC_INVALID_ARGUMENT, "config is null");
}

class Sequences : public ::testing::Test {
 protected:
  Sequences() : cache(1200), context(make_context(2)), sequence(make_sequence(cache.shape(), 2)) {}
  tactic_status update(int layer, std::int64_t tokens, int may_recluster = 1, tactic_update_report* report = nullptr) {
    const tactic_kv_view view = cache.view(tokens);
    return tactic_sequence_update(sequence.get(), context.get(), layer, &view, may_recluster, report);
  }

  TopicCache cache;
  ContextPtr context;
  SequencePtr sequence;
};

TEST_F(Sequences, NullHandlesAreRefusedNotFollowed) {
  tactic_sequence_destroy(nullptr);
  EXPECT_STREQ(tactic_sequence_error(nullptr), "sequence is null");
  std::int64_t number = 0;
  std::size_t bytes = 0;
  tactic_sequence* fork = nullptr;
  tactic_options options;
  ASSERT_WORKS(tactic_options_init(&options, sizeof options));
  const char* text = "sequence is null; create it first";
  EXPECT_FAILS(tactic_sequence_fork(nullptr, &fork), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_observe(nullptr, 0, nullptr, 1, 0, 0), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_update(nullptr, context.get(), 0, nullptr, 1, nullptr), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_attend(nullptr, context.get(), 0, nullptr, nullptr, nullptr), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_due(nullptr, 0, 0, &number), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_clustered(nullptr, 0, &number, &number), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_truncate(nullptr, 0), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_invalidate(nullptr, 0, 0), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_clear(nullptr), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_index_bytes(nullptr, &bytes), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_get_options(nullptr, &options), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_set_options(nullptr, &options), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_save(nullptr, "x"), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_load(nullptr, "x"), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_save_size(nullptr, &bytes), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_save_buffer(nullptr, &bytes, 1, &bytes), TACTIC_INVALID_ARGUMENT, text);
  EXPECT_FAILS(tactic_sequence_load_buffer(nullptr, &bytes, 1), TACTIC_INVALID_ARGUMENT, text);
}

TEST_F(Sequences, NullArgumentsAreNamed) {
  EXPECT_FAILS(tactic_sequence_fork(sequence.get(), nullptr), TACTIC_INVALID_ARGUMENT, "fork is null");
  EXPECT_FAILS(tactic_sequence_observe(sequence.get(), 0, nullptr, 1, 0, 0), TACTIC_INVALID_ARGUMENT, "q is null");
  EXPECT_FAILS(tactic_sequence_update(sequence.get(), nullptr, 0, nullptr, 1, nullptr), TACTIC_INVALID_ARGUMENT,
               "context is null");
  EXPECT_FAILS(tactic_sequence_update(sequence.get(), context.get(), 0, nullptr, 1, nullptr), TACTIC_INVALID_ARGUMENT,
               "kv is null");
  EXPECT_FAILS(tactic_sequence_due(sequence.get(), 0, 1, nullptr), TACTIC_INVALID_ARGUMENT, "due is null");
  EXPECT_FAILS(tactic_sequence_index_bytes(sequence.get(), nullptr), TACTIC_INVALID_ARGUMENT, "bytes is null");
  EXPECT_FAILS(tactic_sequence_get_options(sequence.get(), nullptr), TACTIC_INVALID_ARGUMENT, "options is null");
  EXPECT_FAILS(tactic_sequence_set_options(sequence.get(), nullptr), TACTIC_INVALID_ARGUMENT, "options is null");
  const tactic_kv_view view = cache.view();
  EXPECT_FAILS(tactic_sequence_attend(sequence.get(), context.get(), 0, &view, nullptr, nullptr), TACTIC_INVALID_ARGUMENT,
               "args is null");
}

TEST_F(Sequences, NumbersOutOfRangeAreNamed) {
  const std::vector<float> q = cache.query();
  std::int64_t due = 0;
  EXPECT_FAILS(tactic_sequence_observe(sequence.get(), 2, q.data(), 1, 0, 0), TACTIC_INVALID_ARGUMENT, "layer is 2");
  EXPECT_FAILS(tactic_sequence_observe(sequence.get(), 0, q.data(), 0, 0, 0), TACTIC_INVALID_ARGUMENT, "tokens is 0");
  EXPECT_FAILS(tactic_sequence_observe(sequence.get(), 0, q.data(), 1, 63, 0), TACTIC_INVALID_ARGUMENT, "token_stride is 63");
  EXPECT_FAILS(tactic_sequence_observe(sequence.get(), 0, q.data(), 1, 0, -64), TACTIC_INVALID_ARGUMENT, "head_stride is -64");
  EXPECT_FAILS(update(-1, 1200), TACTIC_INVALID_ARGUMENT, "layer is -1");
  EXPECT_FAILS(tactic_sequence_due(sequence.get(), 0, -1, &due), TACTIC_INVALID_ARGUMENT, "tokens is -1");
  EXPECT_FAILS(tactic_sequence_truncate(sequence.get(), -1), TACTIC_INVALID_ARGUMENT, "tokens is -1");
  EXPECT_FAILS(tactic_sequence_invalidate(sequence.get(), -1, 3), TACTIC_INVALID_ARGUMENT, "first is -1");
  EXPECT_FAILS(tactic_sequence_invalidate(sequence.get(), 4, 3), TACTIC_INVALID_ARGUMENT, "last is 3, must be in [4");
}

TEST_F(Sequences, ANanQueryIsNotObserved) {
  std::vector<float> q = cache.query();
  const std::vector<float> good = q;
  ASSERT_WORKS(tactic_sequence_observe(sequence.get(), 0, good.data(), 1, 0, 0));
  std::size_t before = 0;
  ASSERT_WORKS(tactic_sequence_save_size(sequence.get(), &before));
  q[2 * 64 + 1] = kNan;
  EXPECT_FAILS(tactic_sequence_observe(sequence.get(), 0, q.data(), 1, 0, 0), TACTIC_NON_FINITE,
               "q of token 0, query head 2 holds NaN");
  EXPECT_WORKS(update(0, 1200));
  for (const float x : attend(sequence.get(), context.get(), 0, cache.view(), good)) ASSERT_TRUE(std::isfinite(x));
}

TEST_F(Sequences, PromptThenFurtherSegmentsAreClusteredWhenDue) {
  std::int64_t due = -1;
  tactic_update_report report;
  ASSERT_WORKS(tactic_update_report_init(&report, sizeof report));
  ASSERT_WORKS(tactic_sequence_due(sequence.get(), 0, 255, &due));
  EXPECT_EQ(due, 0) << "below min_context";
  ASSERT_WORKS(tactic_sequence_due(sequence.get(), 0, 500, &due));
  EXPECT_EQ(due, 500 - 4 - 16);
  ASSERT_WORKS(update(0, 500, 1, &report));
  EXPECT_EQ(report.clustered, 480);
  EXPECT_GT(report.seconds, 0);
  EXPECT_EQ(clustered(sequence), (Clustered{4, 484}));
  EXPECT_EQ(clustered(sequence, 1), (Clustered{0, 0})) << "layers are apart";

  ASSERT_WORKS(update(0, 484 + 16 + 127, 1, &report));
  EXPECT_EQ(report.clustered, 0);
  ASSERT_WORKS(update(0, 484 + 16 + 128, 0, &report));
  EXPECT_EQ(report.clustered, 0) << "left for a later call";
  ASSERT_WORKS(update(0, 484 + 16 + 128, 1, &report));
  EXPECT_EQ(report.clustered, 128);
  EXPECT_EQ(clustered(sequence), (Clustered{4, 612}));
}

TEST_F(Sequences, NanInKeysFailsTheUpdateAndTheLayerRunsDense) {
  std::vector<float> row = cache.kv.k(77, 1);
  const std::vector<float> before = row;
  row[0] = kNan;
  cache.kv.set_k(77, 1, row);
  EXPECT_FAILS(update(0, 1200), TACTIC_NON_FINITE, "77");
  EXPECT_EQ(clustered(sequence), (Clustered{0, 0}));
  cache.kv.set_k(77, 1, before);
  const std::vector<float> q = cache.query();
  EXPECT_EQ(attend(sequence.get(), context.get(), 0, cache.view(), q), attend_dense(context.get(), cache, cache.view(), q));
}

TEST_F(Sequences, RollbackInvalidationAndClearDropSegments) {
  prefill(sequence.get(), context.get(), cache, 2, 500);
  ASSERT_WORKS(update(0, 484 + 16 + 128));
  ASSERT_EQ(clustered(sequence), (Clustered{4, 612}));
  ASSERT_WORKS(tactic_sequence_truncate(sequence.get(), 611));
  EXPECT_EQ(clustered(sequence), (Clustered{4, 484}));
  ASSERT_WORKS(tactic_sequence_invalidate(sequence.get(), 484, 600));
  EXPECT_EQ(clustered(sequence), (Clustered{4, 484}));
  ASSERT_WORKS(tactic_sequence_invalidate(sequence.get(), 483, 484));
  EXPECT_EQ(clustered(sequence), (Clustered{0, 0}));
  prefill(sequence.get(), context.get(), cache, 2, 500);
  std::size_t bytes = 0;
  ASSERT_WORKS(tactic_sequence_index_bytes(sequence.get(), &bytes));
  EXPECT_GT(bytes, 0u);
  ASSERT_WORKS(tactic_sequence_clear(sequence.get()));
  ASSERT_WORKS(tactic_sequence_index_bytes(sequence.get(), &bytes));
  EXPECT_EQ(bytes, 0u);
}

TEST_F(Sequences, OptionsThatNeedOtherClustersDropThemOthersDoNot) {
  prefill(sequence.get(), context.get(), cache);
  tactic_options options;
  ASSERT_WORKS(tactic_options_init(&options, sizeof options));
  ASSERT_WORKS(tactic_sequence_get_options(sequence.get(), &options));
  options.mass = 0.6f;
  options.tail_clusters = 0;
  ASSERT_WORKS(tactic_sequence_set_options(sequence.get(), &options));
  EXPECT_EQ(clustered(sequence), (Clustered{4, 1184}));
  options.mass = 2;
  EXPECT_FAILS(tactic_sequence_set_options(sequence.get(), &options), TACTIC_INVALID_ARGUMENT, "options.mass is 2");
  tactic_options kept;
  ASSERT_WORKS(tactic_options_init(&kept, sizeof kept));
  ASSERT_WORKS(tactic_sequence_get_options(sequence.get(), &kept));
  EXPECT_EQ(kept.mass, 0.6f);
  options.mass = 0.6f;
  options.cluster_size = 4;
  ASSERT_WORKS(tactic_sequence_set_options(sequence.get(), &options));
  EXPECT_EQ(clustered(sequence), (Clustered{0, 0}));
}

TEST_F(Sequences, AForkSharesItsPastAndGoesItsOwnWay) {
  prefill(sequence.get(), context.get(), cache, 1, 500);
  const std::vector<float> q = cache.query();
  const std::vector<float> before = attend(sequence.get(), context.get(), 0, cache.view(500), q);
  tactic_sequence* made = nullptr;
  ASSERT_WORKS(tactic_sequence_fork(sequence.get(), &made));
  SequencePtr fork(made);
  EXPECT_EQ(attend(fork.get(), context.get(), 0, cache.view(500), q), before);
  ASSERT_WORKS(update(0, 700));
  EXPECT_EQ(clustered(fork), (Clustered{4, 484}));
  ASSERT_WORKS(tactic_sequence_truncate(sequence.get(), 0));
  EXPECT_EQ(attend(fork.get(), context.get(), 0, cache.view(500), q), before);
  sequence.reset();
  EXPECT_EQ(attend(fork.get(), context.get(), 0, cache.view(500), q), before);
}

TEST_F(Sequences, ARowThatSeesLessThanTheClusteredTokensRunsDense) {
  prefill(sequence.get(), context.get(), cache);
  const std::vector<float> q = cache.query();
  EXPECT_EQ(attend(sequence.get(), context.get(), 0, cache.view(900), q), attend_dense(context.get(), cache, cache.view(900), q));
}

TEST_F(Sequences, SuccessLeavesTheLastMessage) {
  EXPECT_FAILS(update(5, 1200), TACTIC_INVALID_ARGUMENT, "layer is 5");
  EXPECT_WORKS(update(0, 1200));
  EXPECT_STREQ(tactic_sequence_error(sequence.get()), "layer is 5, must be in [0, 1]");
  EXPECT_STREQ(tactic_context_error(context.get()), "") << "the sequence is the first handle";
}

}  // namespace
}  // namespace tactic::test
