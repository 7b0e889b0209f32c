// What the tests of the C API share: clustered K/V caches behind a tactic_kv_view, handles that free themselves, expectations
// on failures.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/kv.h"
#include "tactic/tactic.h"

namespace tactic::test {

// The call fails with this status, and its message, the thread's, contains the text.
#define EXPECT_FAILS(call, status, text)                                                              \
  do {                                                                                                \
    EXPECT_EQ(call, status);                                                                          \
    EXPECT_NE(std::string(tactic_last_error()).find(text), std::string::npos) << tactic_last_error(); \
  } while (false)
#define ASSERT_WORKS(call) ASSERT_EQ(call, TACTIC_OK) << tactic_last_error()
#define EXPECT_WORKS(call) EXPECT_EQ(call, TACTIC_OK) << tactic_last_error()

struct ContextDeleter {
  void operator()(tactic_context* context) const { tactic_context_destroy(context); }
};
struct SequenceDeleter {
  void operator()(tactic_sequence* sequence) const { tactic_sequence_destroy(sequence); }
};
using ContextPtr = std::unique_ptr<tactic_context, ContextDeleter>;
using SequencePtr = std::unique_ptr<tactic_sequence, SequenceDeleter>;

inline ContextPtr make_context(int threads) {
  tactic_context_config config;
  EXPECT_WORKS(tactic_context_config_init(&config, sizeof config));
  config.threads = threads;
  tactic_context* context = nullptr;
  EXPECT_WORKS(tactic_context_create(&config, &context));
  return ContextPtr(context);
}

inline tactic_rows to_c(const Rows& rows) {
  return {rows.data, static_cast<std::int32_t>(rows.type), rows.dim, rows.token_stride, rows.head_stride, rows.block_stride};
}

inline tactic_kv_view to_c(const KvView& kv) {
  tactic_kv_view view;
  EXPECT_WORKS(tactic_kv_view_init(&view, sizeof view));
  view.k = to_c(kv.k);
  view.v = to_c(kv.v);
  view.tokens = kv.tokens;
  view.kv_heads = kv.kv_heads;
  view.block_table = kv.block_table;
  view.block_size = kv.block_size;
  return view;
}

inline tactic_attention to_c(const Shape& shape, float scale = 0) {
  return {shape.q_heads, shape.kv_heads, shape.head_dim, shape.v_head_dim, scale, 0};
}

// A cache whose keys gather around topics, and queries to them, so that sparse attention has something to leave out.
class TopicCache {
 public:
  explicit TopicCache(std::int64_t tokens, std::uint64_t seed = 1)
      : kv({.shape = {4, 2, 64, 64}, .k_type = DType::f32, .v_type = DType::f32, .tokens = tokens, .seed = seed}) {
    for (int t = 0; t < kTopics * shape().kv_heads; ++t) topics_.push_back(kv.normal(64, 1));
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto topic = static_cast<int>(kv.random()() % kTopics);
      for (int h = 0; h < shape().kv_heads; ++h) kv.set_k(t, h, near(topic, h, 0.4f));
    }
  }
  const Shape& shape() const { return kv.spec().shape; }
  tactic_kv_view view(std::int64_t tokens = -1) const {
    tactic_kv_view view = to_c(kv.view());
    if (tokens >= 0) view.tokens = tokens;
    return view;
  }
  // [q_heads, head_dim]
  std::vector<float> query() {
    const auto topic = static_cast<int>(kv.random()() % kTopics);
    std::vector<float> q;
    for (int h = 0; h < shape().q_heads; ++h) {
      for (const float x : near(topic, h / shape().group(), 0.3f)) q.push_back(x);
    }
    return q;
  }

  KvCase kv;

 private:
  static constexpr int kTopics = 32;
  std::vector<float> near(int topic, int head, float apart) {
    std::vector<float> x = kv.normal(64, apart);
    const std::vector<float>& centre = topics_[static_cast<std::size_t>(topic * shape().kv_heads + head)];
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += centre[i];
    return x;
  }
  std::vector<std::vector<float>> topics_;
};

// A sequence of `layers` layers for the cache's shape with small clusters; options can be changed before.
inline SequencePtr make_sequence(const Shape& shape, int layers = 1, const tactic_options* options = nullptr) {
  tactic_options small;
  EXPECT_WORKS(tactic_options_init(&small, sizeof small));
  small.cluster_size = 8;
  small.min_context = 256;
  small.recluster_tokens = 128;
  small.recent_tokens = 16;
  tactic_sequence_config config;
  EXPECT_WORKS(tactic_sequence_config_init(&config, sizeof config));
  config.attention = to_c(shape);
  config.layers = layers;
  config.rotary_layout = TACTIC_ROTARY_NONE;
  config.options = options == nullptr ? &small : options;
  tactic_sequence* sequence = nullptr;
  EXPECT_WORKS(tactic_sequence_create(&config, &sequence));
  return SequencePtr(sequence);
}

// The output rows of one call, all rows at the view's end.
inline std::vector<float> attend(tactic_sequence* sequence, tactic_context* context, int layer, const tactic_kv_view& view,
                                 const std::vector<float>& q, float mass = 0) {
  std::vector<float> out(q.size(), NAN);
  tactic_attend_args args;
  EXPECT_WORKS(tactic_attend_args_init(&args, sizeof args));
  args.q = q.data();
  args.out = out.data();
  args.mass = mass;
  EXPECT_WORKS(tactic_sequence_attend(sequence, context, layer, &view, &args, nullptr));
  return out;
}

inline std::vector<float> attend_dense(tactic_context* context, const TopicCache& cache, const tactic_kv_view& view,
                                       const std::vector<float>& q) {
  std::vector<float> out(q.size(), NAN);
  const tactic_attention attention = to_c(cache.shape());
  tactic_attend_args args;
  EXPECT_WORKS(tactic_attend_args_init(&args, sizeof args));
  args.q = q.data();
  args.out = out.data();
  EXPECT_WORKS(tactic_attend_dense(context, &attention, &view, &args, nullptr));
  return out;
}

// Observes 40 queries and clusters the prompt of every layer.
inline void prefill(tactic_sequence* sequence, tactic_context* context, TopicCache& cache, int layers = 1,
                    std::int64_t tokens = -1) {
  const tactic_kv_view view = cache.view(tokens);
  for (int layer = 0; layer < layers; ++layer) {
    for (int i = 0; i < 40; ++i) {
      const std::vector<float> q = cache.query();
      ASSERT_WORKS(tactic_sequence_observe(sequence, layer, q.data(), 1, 0, 0));
    }
    ASSERT_WORKS(tactic_sequence_update(sequence, context, layer, &view, 1, nullptr));
  }
}

// A folder of the test's own, removed at its end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "tactic-capi-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace tactic::test
