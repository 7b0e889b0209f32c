// Contexts: creation, the caller's own pool, one call at a time, several at once.
#include <atomic>
#include <cstdlib>
#include <thread>

#include "fixture.h"

namespace tactic::test {
namespace {

tactic_status create(std::int32_t threads, tactic_parallel_run run, void* user, ContextPtr& context) {
  tactic_context_config config;
  EXPECT_WORKS(tactic_context_config_init(&config, sizeof config));
  config.threads = threads;
  config.parallel_run = run;
  config.parallel_user = user;
  tactic_context* made = nullptr;
  const tactic_status status = tactic_context_create(&config, &made);
  context.reset(made);
  return status;
}

// A pool that starts threads for each run.
struct Pool {
  int runs = 0;
  int workers = 0;
  int refuse = 0;  // what run() returns without running anything
  static std::int32_t run(void* user, std::int32_t workers, tactic_task task, void* data) {
    Pool& pool = *static_cast<Pool*>(user);
    if (pool.refuse != 0) return pool.refuse;
    ++pool.runs;
    pool.workers = workers;
    std::vector<std::thread> threads;
    for (std::int32_t w = 1; w < workers; ++w) threads.emplace_back([=] { task(data, w); });
    task(data, 0);
    for (std::thread& thread : threads) thread.join();
    return 0;
  }
};

TEST(Contexts, DefaultsTakeTheCoresOfTheProcess) {
  tactic_context* made = nullptr;
  ASSERT_WORKS(tactic_context_create(nullptr, &made));
  const ContextPtr context(made);
  EXPECT_GE(tactic_context_threads(context.get()), 1);
  EXPECT_STREQ(tactic_context_error(context.get()), "");
}

TEST(Contexts, CreationFailuresNameTheField) {
  ContextPtr context;
  EXPECT_FAILS(create(-1, nullptr, nullptr, context), TACTIC_INVALID_ARGUMENT, "config.threads is -1, must be in [0, 1024]");
  EXPECT_FAILS(create(1025, nullptr, nullptr, context), TACTIC_INVALID_ARGUMENT, "config.threads is 1025");
  EXPECT_FAILS(create(0, &Pool::run, nullptr, context), TACTIC_INVALID_ARGUMENT, "config.threads is 0, must be in [1, 1024]");
  EXPECT_FAILS(tactic_context_create(nullptr, nullptr), TACTIC_INVALID_ARGUMENT, "context is null");
}

TEST(Contexts, NullHandlesAreRefusedNotFollowed) {
  tactic_context_destroy(nullptr);
  EXPECT_EQ(tactic_context_threads(nullptr), 0);
  EXPECT_STREQ(tactic_context_error(nullptr), "context is null");
  EXPECT_FAILS(tactic_attend_dense(nullptr, nullptr, nullptr, nullptr, nullptr), TACTIC_INVALID_ARGUMENT,
               "context is null; create it first");
}

TEST(Contexts, TheCallersPoolRunsTheWorkers) {
  Pool pool;
  ContextPtr pooled;
  ASSERT_WORKS(create(3, &Pool::run, &pool, pooled));
  EXPECT_EQ(tactic_context_threads(pooled.get()), 3);
  const ContextPtr own = make_context(3);
  TopicCache cache(600);
  const SequencePtr sequence = make_sequence(cache.shape());
  prefill(sequence.get(), pooled.get(), cache);
  const std::vector<float> q = cache.query();
  const std::vector<float> with_pool = attend(sequence.get(), pooled.get(), 0, cache.view(), q);
  EXPECT_GE(pool.runs, 2);
  EXPECT_EQ(pool.workers, 3);
  EXPECT_EQ(with_pool, attend(sequence.get(), own.get(), 0, cache.view(), q));
}

TEST(Contexts, APoolThatRefusesFailsTheCall) {
  Pool pool;
  pool.refuse = 7;
  ContextPtr context;
  ASSERT_WORKS(create(2, &Pool::run, &pool, context));
  TopicCache cache(50);
  const SequencePtr sequence = make_sequence(cache.shape());
  const tactic_kv_view view = cache.view();
  std::vector<float> q = cache.query();
  std::vector<float> out(q.size());
  tactic_attend_args args;
  ASSERT_WORKS(tactic_attend_args_init(&args, sizeof args));
  args.q = q.data();
  args.out = out.data();
  EXPECT_FAILS(tactic_sequence_attend(sequence.get(), context.get(), 0, &view, &args, nullptr), TACTIC_INVALID_STATE,
               "parallel_run returned 7");
  pool.refuse = 0;
  EXPECT_WORKS(tactic_sequence_attend(sequence.get(), context.get(), 0, &view, &args, nullptr));
}

// A second call from inside a running one: the pool's callback makes it.
TEST(Contexts, ASecondCallAtTheSameTimeIsRefused) {
  struct Nested {
    tactic_context* context = nullptr;
    tactic_sequence* sequence = nullptr;
    TopicCache cache{50};
    tactic_status on_context = TACTIC_OK;
    tactic_status on_sequence = TACTIC_OK;
    static std::int32_t run(void* user, std::int32_t workers, tactic_task task, void* data) {
      Nested& self = *static_cast<Nested*>(user);
      const tactic_kv_view view = self.cache.view();
      const tactic_attention attention = to_c(self.cache.shape());
      tactic_attend_args args{};
      args.size = sizeof args;
      self.on_context = tactic_attend_dense(self.context, &attention, &view, &args, nullptr);
      self.on_sequence = tactic_sequence_clear(self.sequence);
      for (std::int32_t w = 0; w < workers; ++w) task(data, w);
      return 0;
    }
  } nested;
  ContextPtr context;
  ASSERT_WORKS(create(1, &Nested::run, &nested, context));
  const SequencePtr sequence = make_sequence(nested.cache.shape());
  nested.context = context.get();
  nested.sequence = sequence.get();
  attend(sequence.get(), context.get(), 0, nested.cache.view(), nested.cache.query());
  EXPECT_EQ(nested.on_context, TACTIC_INVALID_STATE);
  EXPECT_EQ(nested.on_sequence, TACTIC_INVALID_STATE);
  EXPECT_NE(std::string(tactic_last_error()).find("sequence is in use by another call"), std::string::npos);
  EXPECT_STREQ(tactic_sequence_error(sequence.get()), "") << "the running call's handle is not to be written by another";
}

TEST(Contexts, TwoInTwoThreadsGiveWhatOneGives) {
  constexpr int kSteps = 12;
  const auto decode = [](std::uint64_t seed) {
    const ContextPtr context = make_context(2);
    TopicCache cache(700, seed);
    const SequencePtr sequence = make_sequence(cache.shape());
    prefill(sequence.get(), context.get(), cache, 1, 500);
    std::vector<std::vector<float>> outputs;
    for (int step = 0; step < kSteps; ++step) {
      const tactic_kv_view view = cache.view(501 + step * 16);
      const std::vector<float> q = cache.query();
      EXPECT_WORKS(tactic_sequence_update(sequence.get(), context.get(), 0, &view, 1, nullptr));
      outputs.push_back(attend(sequence.get(), context.get(), 0, view, q));
    }
    return outputs;
  };
  std::vector<std::vector<float>> both[2];
  std::thread first([&] { both[0] = decode(1); });
  std::thread second([&] { both[1] = decode(2); });
  first.join();
  second.join();
  EXPECT_EQ(both[0], decode(1));
  EXPECT_EQ(both[1], decode(2));
}

TEST(Contexts, LastErrorsBelongToTheirThread) {
  EXPECT_EQ(tactic_sequence_clear(nullptr), TACTIC_INVALID_ARGUMENT);
  std::string other = "not run";
  std::thread([&] { other = tactic_last_error(); }).join();
  EXPECT_EQ(other, "");
  EXPECT_STREQ(tactic_last_error(), "sequence is null; create it first");
}

TEST(Library, SaysWhatItIs) {
  const std::string version = std::to_string(TACTIC_VERSION_MAJOR) + "." + std::to_string(TACTIC_VERSION_MINOR) + "." +
                              std::to_string(TACTIC_VERSION_PATCH);
  EXPECT_EQ(tactic_version(), version);
  EXPECT_EQ(version, TACTIC_PROJECT_VERSION) << "tactic.h and CMakeLists.txt";
  EXPECT_EQ(std::string(tactic_build_info()), "tactic " + version + " cpu " + name_of(active_isa()));
}

TEST(Library, EveryStatusHasAName) {
  for (int s = TACTIC_OK; s <= TACTIC_INTERNAL; ++s) {
    EXPECT_STRNE(tactic_status_name(static_cast<tactic_status>(s)), "unknown status");
  }
}

}  // namespace
}  // namespace tactic::test
