// The life of a sequence through the C++ header: prefill, 200 decode steps with new tokens, a fork, a rollback, save and load.
#include <cmath>
#include <cstdio>
#include <random>
#include <tactic/tactic.hpp>
#include <vector>

namespace {

constexpr tactic::attention kLayer{.q_heads = 6, .kv_heads = 2, .head_dim = 64};
constexpr int kLayers = 2;
constexpr std::int64_t kPrompt = 3000;
constexpr std::int64_t kRoom = 4096;  // tokens the cache can hold

// A cache of one layer, [tokens, heads, dim] of floats, and the queries to it: keys and queries gather around topics.
class Cache {
 public:
  explicit Cache(unsigned seed) : random_(seed), topics_(64 * kRow), k_(kRoom * kRow), v_(kRoom * kRow) {
    for (float& x : topics_) x = normal_(random_);
  }
  void append() {
    const std::size_t topic = random_() % 64;
    for (std::size_t i = 0; i < kRow; ++i) {
      k_[static_cast<std::size_t>(tokens_) * kRow + i] = topics_[topic * kRow + i] + 0.4f * normal_(random_);
      v_[static_cast<std::size_t>(tokens_) * kRow + i] = normal_(random_);
    }
    ++tokens_;
  }
  void truncate(std::int64_t tokens) { tokens_ = tokens; }
  std::int64_t tokens() const { return tokens_; }
  tactic::kv_view view() const {
    const auto rows = [](const std::vector<float>& data) {
      return tactic::rows{.data = data.data(),
                          .type = tactic::dtype::f32,
                          .dim = kLayer.head_dim,
                          .token_stride = kRow * sizeof(float),
                          .head_stride = kLayer.head_dim * static_cast<int>(sizeof(float))};
    };
    return {.k = rows(k_), .v = rows(v_), .tokens = tokens_, .kv_heads = kLayer.kv_heads};
  }
  std::vector<float> query() {
    const std::size_t topic = random_() % 64;
    std::vector<float> q;
    for (int h = 0; h < kLayer.q_heads; ++h) {
      const std::size_t kv_head = static_cast<std::size_t>(h / (kLayer.q_heads / kLayer.kv_heads));
      for (std::size_t i = 0; i < 64; ++i) q.push_back(1.2f * topics_[topic * kRow + kv_head * 64 + i] + 0.3f * normal_(random_));
    }
    return q;
  }

 private:
  static constexpr std::size_t kRow = 2 * 64;  // [kv_heads, head_dim]
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  std::vector<float> topics_;
  std::vector<float> k_;
  std::vector<float> v_;
  std::int64_t tokens_ = 0;
};

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double apart = 0;
  double size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    apart += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(apart / size);
}

}  // namespace

int main() try {
  tactic::context threads(2);
  std::vector<Cache> caches{Cache(1), Cache(2)};

  tactic::options choice;
  choice.cluster_size = 8;
  choice.recluster_tokens = 128;  // small, so that 200 steps see a further segment
  tactic::sequence sequence({.layer = kLayer, .layers = kLayers, .turns = {.layout = TACTIC_ROTARY_NONE}, .choice = choice});

  for (int layer = 0; layer < kLayers; ++layer) {
    Cache& cache = caches[static_cast<std::size_t>(layer)];
    while (cache.tokens() < kPrompt) cache.append();
    for (int i = 0; i < 32; ++i) sequence.observe(layer, cache.query());
    const tactic::update_report done = sequence.update(threads, layer, cache.view());
    std::printf("layer %d: clustered %lld of %lld tokens\n", layer, static_cast<long long>(done.clustered),
                static_cast<long long>(kPrompt));
  }

  std::vector<float> out(6 * 64);
  std::vector<float> exact(6 * 64);
  tactic::report report;
  double bytes = 0;
  double dense_bytes = 0;
  double worst = 0;
  for (int step = 0; step < 200; ++step) {
    for (int layer = 0; layer < kLayers; ++layer) {
      Cache& cache = caches[static_cast<std::size_t>(layer)];
      cache.append();
      const std::vector<float> q = cache.query();
      sequence.observe(layer, q);
      sequence.update(threads, layer, cache.view(), step % kLayers == layer);  // at most one pause a step
      sequence.attend(threads, layer, cache.view(), {.q = q, .out = out}, &report);
      bytes += report.bytes;
      dense_bytes += report.dense_bytes;
      if (step % 20 == 0) {
        threads.attend_dense(kLayer, cache.view(), {.q = q, .out = exact});
        worst = std::max(worst, distance(out, exact));
      }
    }
  }
  std::printf("200 steps read %.1f%% of the bytes of dense attention; output off by at most %.1f%% of its norm\n",
              100 * bytes / dense_bytes, 100 * worst);

  // Two answers to one prompt: the fork shares the clusters and goes its own way.
  tactic::sequence other = sequence.fork();
  other.truncate(kPrompt);
  caches[0].truncate(kPrompt);
  const std::vector<float> q = caches[0].query();
  other.attend(threads, 0, caches[0].view(), {.q = q, .out = out});
  std::printf("the fork keeps clusters up to token %lld, the first one up to %lld\n",
              static_cast<long long>(other.clustered(0).second), static_cast<long long>(sequence.clustered(0).second));

  // The index as bytes: the same sequence again, the same output.
  tactic::sequence again({.layer = kLayer, .layers = kLayers, .turns = {.layout = TACTIC_ROTARY_NONE}, .choice = choice});
  const std::vector<std::byte> saved = other.save();
  again.load(saved);
  std::vector<float> same(out.size());
  again.attend(threads, 0, caches[0].view(), {.q = q, .out = same});
  std::printf("saved %zu bytes; the loaded sequence answers %s\n", saved.size(), same == out ? "the same" : "something else");
  // Values are independent noise here, so that leaving out a tenth of the mass costs at most sqrt(.1 / .9) = 33%.
  return same == out && worst < 0.33 && bytes < 0.5 * dense_bytes ? 0 : 1;
} catch (const tactic::error& e) {
  std::fprintf(stderr, "%s: %s\n", tactic_status_name(e.status()), e.what());
  return 1;
}
