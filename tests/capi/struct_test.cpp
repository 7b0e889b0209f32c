// Structs that grow: defaults, older and newer callers, sizes that were never set.
#include <cstddef>
#include <cstring>

#include "core/options.h"
#include "fixture.h"

namespace tactic::test {
namespace {

struct NewerOptions {
  tactic_options known;
  std::int32_t added[4];
};

tactic_status create(const tactic_options* options, SequencePtr& sequence) {
  tactic_sequence_config config;
  EXPECT_WORKS(tactic_sequence_config_init(&config, sizeof config));
  config.attention = {4, 2, 64, 64, 0, 0};
  config.layers = 1;
  config.options = options;
  tactic_sequence* made = nullptr;
  const tactic_status status = tactic_sequence_create(&config, &made);
  sequence.reset(made);
  return status;
}

tactic_options options_of(const SequencePtr& sequence) {
  tactic_options options;
  EXPECT_WORKS(tactic_options_init(&options, sizeof options));
  EXPECT_WORKS(tactic_sequence_get_options(sequence.get(), &options));
  return options;
}

TEST(Structs, OptionsInitGivesTheCoresDefaults) {
  tactic_options o;
  std::memset(&o, 0xff, sizeof o);
  ASSERT_WORKS(tactic_options_init(&o, sizeof o));
  const Options core;
  EXPECT_EQ(o.size, sizeof o);
  EXPECT_EQ(o.method, TACTIC_METHOD_TACTIC);
  EXPECT_EQ(o.mass, core.mass);
  EXPECT_EQ(o.cluster_size, core.cluster_size);
  EXPECT_EQ(o.goal, static_cast<std::int32_t>(core.goal));
  EXPECT_EQ(o.tail_clusters, core.tail_clusters);
  EXPECT_EQ(o.seed, core.seed);
  EXPECT_EQ(o.outlier_share, core.outlier_share);
  EXPECT_EQ(o.fit_second, core.fit_second);
}

TEST(Structs, PaperOptionsAreThePapers) {
  tactic_options o;
  ASSERT_WORKS(tactic_options_init_paper(&o, sizeof o));
  EXPECT_EQ(o.method, TACTIC_METHOD_PAPER);
  EXPECT_EQ(o.metric, TACTIC_METRIC_L2);
  EXPECT_EQ(o.iterations, 10);
  EXPECT_EQ(o.int8_centroids, 0);
  EXPECT_EQ(o.outlier_share, 0);
}

TEST(Structs, EveryOptionReachesTheSequenceAndComesBack) {
  tactic_options o;
  ASSERT_WORKS(tactic_options_init(&o, sizeof o));
  o.method = TACTIC_METHOD_PAPER;
  o.mass = 0.5f;
  o.cluster_size = 20;
  o.iterations = 7;
  o.segment_tokens = 4096;
  o.metric = TACTIC_METRIC_DIAGONAL;
  o.shrinkage = 0.25f;
  o.int8_centroids = 0;
  o.seed = 99;
  o.outlier_share = 0.2f;
  o.sink_tokens = 5;
  o.recent_tokens = 65;
  o.recluster_tokens = 4000;
  o.min_context = 2000;
  o.goal = TACTIC_GOAL_MASS;
  o.spread = o.joint = o.verify = o.tail_factor = 0;
  o.tail_clusters = 3;
  o.promise = 1;
  o.fit_head = 0.03f;
  o.fit_window = 0.02f;
  o.fit_first = 0.2f;
  o.fit_second = 0.7f;
  SequencePtr sequence;
  ASSERT_WORKS(create(&o, sequence));
  const tactic_options back = options_of(sequence);
  EXPECT_EQ(std::memcmp(&back, &o, sizeof o), 0);
}

TEST(Structs, AnOlderCallersShorterOptionsGetDefaultsForTheRest) {
  constexpr std::size_t old_size = offsetof(tactic_options, iterations);
  tactic_options o;
  std::memset(&o, 0xff, sizeof o);  // what lies behind the old struct is not ours to read
  ASSERT_WORKS(tactic_options_init(&o, old_size));
  EXPECT_EQ(o.iterations, -1) << "initialised past the caller's struct";
  o.cluster_size = 16;
  SequencePtr sequence;
  ASSERT_WORKS(create(&o, sequence));
  const tactic_options back = options_of(sequence);
  EXPECT_EQ(back.cluster_size, 16);
  EXPECT_EQ(back.iterations, Options{}.iterations);
}

TEST(Structs, ANewerCallersOptionsWorkWhileTheUnknownTailIsZero) {
  NewerOptions o;
  std::memset(&o, 0xff, sizeof o);
  ASSERT_WORKS(tactic_options_init(&o.known, sizeof o));
  EXPECT_EQ(o.added[3], 0);
  SequencePtr sequence;
  EXPECT_WORKS(create(&o.known, sequence));
}

TEST(Structs, ANewerCallersUnknownOptionIsRefused) {
  NewerOptions o;
  ASSERT_WORKS(tactic_options_init(&o.known, sizeof o));
  o.added[3] = 1;
  SequencePtr sequence;
  EXPECT_FAILS(create(&o.known, sequence), TACTIC_UNSUPPORTED, "the rest is not zero");
}

TEST(Structs, ResultsAreWrittenOnlyAsFarAsTheCallersStructReaches) {
  const ContextPtr context = make_context(1);
  TopicCache cache(400);
  const SequencePtr sequence = make_sequence(cache.shape());
  tactic_update_report report;
  ASSERT_WORKS(tactic_update_report_init(&report, sizeof report));
  report.size = offsetof(tactic_update_report, seconds);
  report.seconds = -5;
  const tactic_kv_view view = cache.view();
  ASSERT_WORKS(tactic_sequence_update(sequence.get(), context.get(), 0, &view, 1, &report));
  EXPECT_EQ(report.clustered, 400 - 16 - 4);
  EXPECT_EQ(report.seconds, -5);
}

TEST(Structs, SizesThatWereNeverSetAreRefused) {
  tactic_options o{};
  SequencePtr sequence;
  EXPECT_FAILS(create(&o, sequence), TACTIC_INVALID_ARGUMENT, "options.size is 0, must be in [");
  o.size = 1u << 20;
  EXPECT_FAILS(create(&o, sequence), TACTIC_INVALID_ARGUMENT, "options.size is 1048576");
  EXPECT_FAILS(tactic_options_init(&o, 4), TACTIC_INVALID_ARGUMENT, "options.size is 4");
  EXPECT_FAILS(tactic_options_init(nullptr, sizeof o), TACTIC_INVALID_ARGUMENT, "options is null");
  EXPECT_FAILS(tactic_kv_view_init(nullptr, 64), TACTIC_INVALID_ARGUMENT, "kv is null");
  tactic_report report;
  EXPECT_FAILS(tactic_report_init(&report, 0), TACTIC_INVALID_ARGUMENT, "report.size is 0");
  tactic_context_config config{};
  tactic_context* context = nullptr;
  EXPECT_FAILS(tactic_context_create(&config, &context), TACTIC_INVALID_ARGUMENT, "config.size is 0");
  EXPECT_EQ(context, nullptr);
}

}  // namespace
}  // namespace tactic::test
