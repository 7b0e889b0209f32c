// A sequence growing token by token: keys in topics, values, and queries of every token, all heads; for tests of Sequence.
#pragma once

#include <random>
#include <vector>

#include "sequence/sequence.h"
#include "support/layer.h"

namespace tactic::test {

class Story {
 public:
  Story(const Shape& shape, std::int64_t tokens, std::uint64_t seed = 3)
      : kv_({.shape = shape, .tokens = tokens, .seed = seed}), layer_shape_(shape), tokens_(tokens) {
    constexpr int kTopics = 50;
    const auto d = static_cast<std::size_t>(shape.head_dim);
    std::uniform_int_distribution<int> any(0, kTopics - 1);
    for (int h = 0; h < shape.kv_heads; ++h) {
      std::vector<std::vector<float>> centers;
      for (int i = 0; i < kTopics; ++i) centers.push_back(kv_.normal(d, 1));
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::vector<float> key = kv_.normal(d, 0.5f);
        const auto& center = centers[static_cast<std::size_t>(any(kv_.random()))];
        for (std::size_t i = 0; i < d; ++i) key[i] += center[i];
        kv_.set_k(t, h, key);
      }
    }
    q_ = kv_.normal(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(shape.q_heads) * d, 2);
  }

  SequenceConfig config(const Options& options, int layers = 1) const {
    SequenceConfig c;
    c.layers = layers;
    c.shape = layer_shape_;
    c.params.scale = 1 / std::sqrt(static_cast<float>(layer_shape_.head_dim));
    c.rotary.layout = Rotary::Layout::none;
    c.options = options;
    return c;
  }
  KvView view(std::int64_t tokens) const {
    KvView kv = kv_.view();
    kv.tokens = tokens;
    return kv;
  }
  const float* q(std::int64_t token) const { return q_.data() + token * row(); }
  std::int64_t row() const { return static_cast<std::int64_t>(layer_shape_.q_heads) * layer_shape_.head_dim; }
  std::int64_t tokens() const { return tokens_; }
  KvCase& kv() { return kv_; }

  void observe(Sequence& s, int layer, std::int64_t first, std::int64_t last) const {
    s.observe(layer, q(first), static_cast<int>(last - first), row(), layer_shape_.head_dim);
  }

 private:
  KvCase kv_;
  Shape layer_shape_;
  std::int64_t tokens_;
  std::vector<float> q_;  // [tokens, q_heads, head_dim]
};

// A team, its scratch, and a sequence's steps with all of their report.
class Stage {
 public:
  explicit Stage(int workers = 2) : team_(make_thread_team(workers)), workspace_(make_workspace()) {}
  UpdateReport update(Sequence& s, const Story& story, std::int64_t tokens, bool may_recluster = true, int layer = 0) {
    return s.update(*team_, *workspace_, layer, story.view(tokens), may_recluster);
  }
  // Attention of the last of `tokens` tokens.
  StepResult attend(const Sequence& s, const Story& story, std::int64_t tokens, int layer = 0) {
    return run_step(s.config().shape, tokens, [&](float* out, float* lse, StepReport* report) {
      return s.attend(*team_, *workspace_, layer, story.q(tokens - 1), story.view(tokens), nullptr, out, lse, report);
    });
  }
  Team& team() { return *team_; }
  Workspace& workspace() { return *workspace_; }

 private:
  std::unique_ptr<Team> team_;
  WorkspacePtr workspace_;
};

// Steps that attended the same tokens with the same result, bit for bit.
inline void expect_same_step(const StepResult& a, const StepResult& b) {
  EXPECT_EQ(a.status, b.status);
  EXPECT_EQ(a.bits, b.bits);
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.lse, b.lse);
  EXPECT_EQ(a.attended, b.attended);
  EXPECT_EQ(a.estimated, b.estimated);
}

inline Options small_options() {
  Options o;
  o.cluster_size = 16;
  o.min_context = 512;
  o.recluster_tokens = 256;
  o.tail_clusters = 16;
  o.goal = Goal::mass;
  return o;
}

}  // namespace tactic::test
