// Views of K and V that cannot be read are refused, each with a message that names the field.
#include <functional>

#include "fixture.h"

namespace tactic::test {
namespace {

struct BadView {
  const char* message;
  std::function<void(tactic_kv_view&)> spoil;
};

class Views : public ::testing::Test {
 protected:
  Views() : kv({.shape = {4, 2, 64, 80}, .tokens = 40, .layout = Layout::blocks}), context(make_context(1)) {}

  tactic_status attend(const tactic_kv_view* view) {
    const tactic_attention attention = to_c(kv.spec().shape);
    tactic_attend_args args;
    EXPECT_WORKS(tactic_attend_args_init(&args, sizeof args));
    args.q = kv.q().data();
    args.out = out.data();
    return tactic_attend_dense(context.get(), &attention, view, &args, nullptr);
  }

  KvCase kv;
  ContextPtr context;
  std::vector<float> out = std::vector<float>(4 * 80);
};

TEST_F(Views, AGoodOneWorks) {
  const tactic_kv_view view = to_c(kv.view());
  EXPECT_WORKS(attend(&view));
}

TEST_F(Views, EachBadFieldIsNamed) {
  const std::vector<BadView> bad = {
      {"kv.k.data is null", [](auto& v) { v.k.data = nullptr; }},
      {"kv.v.data is null", [](auto& v) { v.v.data = nullptr; }},
      {"kv.k.data is not aligned to the element's size (2", [](auto& v) { v.k.data = static_cast<const char*>(v.k.data) + 1; }},
      {"kv.k.dtype is 3, must be in [0, 2]", [](auto& v) { v.k.dtype = 3; }},
      {"kv.v.dtype is -1", [](auto& v) { v.v.dtype = -1; }},
      {"kv.k.dim is 80, must be 64", [](auto& v) { v.k.dim = 80; }},
      {"kv.v.dim is 64, must be 80", [](auto& v) { v.v.dim = 64; }},
      {"kv.k.token_stride is 126 bytes, must be at least a row (128 bytes)", [](auto& v) { v.k.token_stride = 126; }},
      {"kv.k.token_stride is -128 bytes", [](auto& v) { v.k.token_stride = -128; }},
      {"kv.v.head_stride is 0 bytes, must be at least a row (160 bytes)", [](auto& v) { v.v.head_stride = 0; }},
      {"kv.v.head_stride is 161 bytes, must be a multiple", [](auto& v) { v.v.head_stride = 161; }},
      {"kv.k.block_stride is 0 bytes", [](auto& v) { v.k.block_stride = 0; }},
      {"kv.kv_heads is 3, must be 2", [](auto& v) { v.kv_heads = 3; }},
      {"kv.tokens is 0, must be in [1, 2147483647]", [](auto& v) { v.tokens = 0; }},
      {"kv.tokens is -1", [](auto& v) { v.tokens = -1; }},
      {"kv.tokens is 2147483648", [](auto& v) { v.tokens = std::int64_t{1} << 31; }},
      {"kv.block_size is 0, must be in [1", [](auto& v) { v.block_size = 0; }},
      {"kv.block_count is -1", [](auto& v) { v.block_count = -1; }},
      {"must be in [0, 3), the cache's blocks", [](auto& v) { v.block_count = 3; }},
  };
  for (const BadView& b : bad) {
    tactic_kv_view view = to_c(kv.view());
    b.spoil(view);
    EXPECT_FAILS(attend(&view), TACTIC_INVALID_ARGUMENT, b.message);
    EXPECT_STREQ(tactic_context_error(context.get()), tactic_last_error());
  }
  EXPECT_FAILS(attend(nullptr), TACTIC_INVALID_ARGUMENT, "kv is null");
}

TEST_F(Views, BlockIdsAreCheckedWhenTheCachesSizeIsGiven) {
  tactic_kv_view view = to_c(kv.view());
  view.block_count = 6;  // three blocks of 16 tokens: ids 1, 3, 5
  EXPECT_WORKS(attend(&view));
  const std::int32_t ids[] = {1, -3, 5};
  view.block_table = ids;
  EXPECT_FAILS(attend(&view), TACTIC_INVALID_ARGUMENT, "kv.block_table[1] is -3, must be in [0, 6)");
}

TEST_F(Views, StridesThatAreNotReadAreNotChecked) {
  KvCase one({.shape = {2, 1, 64, 64}, .tokens = 9});
  tactic_kv_view view = to_c(one.view());
  view.k.head_stride = view.v.head_stride = -1;
  view.k.block_stride = view.v.block_stride = -1;
  view.block_size = -1;
  const tactic_attention attention = to_c(one.spec().shape);
  tactic_attend_args args;
  ASSERT_WORKS(tactic_attend_args_init(&args, sizeof args));
  args.q = one.q().data();
  args.out = out.data();
  EXPECT_WORKS(tactic_attend_dense(context.get(), &attention, &view, &args, nullptr));
}

}  // namespace
}  // namespace tactic::test
