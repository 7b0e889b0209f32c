// Which layers Tactic leaves alone: a window that slides over the sequence.
#include "layer.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <memory>
#include <vector>

namespace tactic::llama {
namespace {

constexpr std::int64_t kCells = 128;
constexpr std::int32_t kWindow = 40;

class LlamaLayer : public ::testing::Test {
 protected:
  // The engine's graph of one layer with a cache of kCells cells, without the engine: only shapes and names are read.
  void SetUp() override {
    ggml_tensor* k = cache("cache_k_l3");
    ggml_tensor* v = cache("cache_v_l3");
    ggml_tensor* q = tensor(GGML_TYPE_F32, {64, 1, 2});
    node_ = tensor(GGML_TYPE_F32, {64, 2, 1});
    node_->src[0] = q;
    node_->src[1] = view(k);
    node_->src[2] = view(v);
    at_.node = node_;
    at_.k_root = k;
    at_.v_root = v;
    at_.shape = {2, 1, 64, 64};
    at_.params.scale = 0.125f;
    at_.rows = 1;
    at_.cells = kCells;
    layer_ = std::make_unique<Layer>(at_);
  }

  void write(std::int32_t first, std::int32_t last) {
    ++step_;
    for (std::int32_t cell = first; cell < last; ++cell) layer_->cells().appended(cell, step_);
  }
  static Visible shown(std::int32_t first, std::int32_t last) {
    Visible v;
    v.words.assign(kCells / 64, 0);
    for (std::int32_t c = first; c < last; ++c) v.words[static_cast<std::size_t>(c) / 64] |= std::uint64_t{1} << (c % 64);
    v.count = last - first;
    return v;
  }
  // A step that writes cell `end` - 1 and shows cells first .. end - 1. Whether Tactic takes it.
  bool decode(std::int32_t first, std::int32_t end) {
    write(end - 1, end);
    if (layer_->check(at_) != nullptr) return false;
    const Visible row = shown(first, end);
    const char* reason = nullptr;
    return layer_->follow({&row, 1}, settings_, reason) != nullptr;
  }

  AttentionNode at_;
  std::unique_ptr<Layer> layer_;
  Settings settings_;

 private:
  ggml_tensor* tensor(ggml_type type, std::array<std::int64_t, 3> size) {
    auto& t = tensors_.emplace_back(std::make_unique<ggml_tensor>());
    t->type = type;
    const std::size_t element = type == GGML_TYPE_F16 ? 2 : 4;
    for (std::size_t i = 0; i < 4; ++i) t->ne[i] = i < 3 ? size[i] : 1;
    t->nb[0] = element;
    for (std::size_t i = 1; i < 4; ++i) t->nb[i] = t->nb[i - 1] * static_cast<std::size_t>(t->ne[i - 1]);
    return t.get();
  }
  ggml_tensor* cache(const char* name) {
    ggml_tensor* t = tensor(GGML_TYPE_F16, {64, kCells, 1});
    std::snprintf(t->name, sizeof t->name, "%s", name);
    return t;
  }
  ggml_tensor* view(ggml_tensor* root) {
    ggml_tensor* t = tensor(GGML_TYPE_F16, {64, kCells, 1});
    t->view_src = root;
    return t;
  }

  std::vector<std::unique_ptr<ggml_tensor>> tensors_;
  ggml_tensor* node_ = nullptr;
  std::uint32_t step_ = 0;
};

TEST_F(LlamaLayer, AWindowThatSlidInThePromptIsNeverTaken) {
  write(0, 60);
  layer_->look_for_window(shown(58 - kWindow, 58), shown(59 - kWindow, 59));
  EXPECT_STREQ(layer_->check(at_), "sliding window");
}

TEST_F(LlamaLayer, RowsOfAGrowingPromptAreNoWindow) {
  write(0, 60);
  layer_->look_for_window(shown(0, 58), shown(0, 59));
  EXPECT_EQ(layer_->check(at_), nullptr);
  EXPECT_TRUE(decode(0, 61));
}

TEST_F(LlamaLayer, RowsOfTwoSequencesAreNoWindow) {
  write(0, 60);
  layer_->look_for_window(shown(0, 20), shown(20, 40));  // nothing shared
  EXPECT_EQ(layer_->check(at_), nullptr);
  Visible forked = shown(0, 10);  // a common start, then its own tokens
  for (std::int32_t c = 30; c < 35; ++c) forked.words[0] |= std::uint64_t{1} << c;
  forked.count = 15;
  layer_->look_for_window(shown(0, 20), forked);
  EXPECT_EQ(layer_->check(at_), nullptr);
}

// A ring of cells: the newest tokens stand before the oldest.
TEST_F(LlamaLayer, TheOldestTokenIsTheFirstThatCameNotTheFirstCell) {
  write(64, 128);
  write(0, 30);
  const auto ring = [](std::int32_t oldest, std::int32_t end) {
    Visible v = shown(oldest, 128);
    v.words[0] = (std::uint64_t{1} << end) - 1;
    v.count += end;
    return v;
  };
  layer_->look_for_window(ring(64, 28), ring(64, 29));
  EXPECT_EQ(layer_->check(at_), nullptr);
  layer_->look_for_window(ring(65, 28), ring(66, 29));
  EXPECT_STREQ(layer_->check(at_), "sliding window");
}

TEST_F(LlamaLayer, AWindowThatBeginsToSlideWhileDecodingIsLeftFromThatStepOn) {
  write(0, kWindow - 1);
  EXPECT_TRUE(decode(0, kWindow));
  for (std::int32_t end = kWindow + 1; end < kWindow + 6; ++end) EXPECT_FALSE(decode(end - kWindow, end)) << end;
  EXPECT_STREQ(layer_->check(at_), "sliding window");
  EXPECT_EQ(layer_->current(), nullptr);
  EXPECT_EQ(layer_->index_bytes(), 0u);
}

TEST_F(LlamaLayer, AWindowSlidesThoughADraftWasWithdrawn) {
  write(0, kWindow);
  EXPECT_TRUE(decode(0, kWindow + 1));
  write(kWindow + 1, kWindow + 2);
  Visible row = shown(3, kWindow + 2);
  row.words[0] &= ~(std::uint64_t{1} << kWindow);  // the newest token of the step before
  --row.count;
  const char* reason = nullptr;
  EXPECT_EQ(layer_->follow({&row, 1}, settings_, reason), nullptr);
  EXPECT_STREQ(reason, "sliding window");
}

TEST_F(LlamaLayer, AProgramThatTakesTheFrontAwayOnceLosesOneStep) {
  write(0, kWindow);
  EXPECT_TRUE(decode(0, kWindow + 1));
  EXPECT_FALSE(decode(10, kWindow + 2));
  EXPECT_TRUE(decode(10, kWindow + 3));
  EXPECT_FALSE(decode(20, kWindow + 4));
  EXPECT_TRUE(decode(20, kWindow + 5));
}

}  // namespace
}  // namespace tactic::llama
