// Attention over lists on the device against double precision: always-attended tokens, listed tokens and represented clusters in
// every type, shape and layout; what is damaged is reported and stays where it is.
#include "lists_case.h"

namespace tactic::test {
namespace {

void check_case(const ListsSpec& spec) {
  Lists lists(spec);
  lists.run();
  lists.expect_right();
  for (std::size_t s = 0; s < spec.lengths.size(); ++s) lists.expect_status(s, 0);
}

class GpuLists : public OnDevice {};

TEST_F(GpuLists, every_type_and_layout) {
  std::uint64_t seed = 1;
  for (const DeviceType type : {DeviceType::bf16, DeviceType::f16, DeviceType::fp8_e4m3, DeviceType::f32}) {
    for (const Layout layout : {Layout::side_by_side, Layout::padded, Layout::head_major, Layout::blocks}) {
      SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " layout " + std::to_string(static_cast<int>(layout)));
      ListsSpec spec;
      spec.kv.seed = ++seed, spec.lengths = {777, 60, 2000};
      spec.format.type = type, spec.format.layout = layout;
      if (type == DeviceType::fp8_e4m3) spec.format.k_scale = 0.03f, spec.format.v_scale = 0.02f;
      check_case(spec);
    }
  }
}

TEST_F(GpuLists, every_block_size) {
  for (const int block : {1, 7, 16, 64}) {
    SCOPED_TRACE("block size " + std::to_string(block));
    ListsSpec spec;
    spec.format.layout = Layout::blocks, spec.format.block_size = block, spec.lengths = {500, 131};
    check_case(spec);
  }
}

TEST_F(GpuLists, every_head_dim_and_type) {
  for (const DeviceType type : {DeviceType::bf16, DeviceType::f16, DeviceType::fp8_e4m3}) {
    for (const int k : {64, 80, 96, 128, 256}) {
      for (const int v : {64, 80, 96, 128, 256}) {
        if (k != v && type != DeviceType::bf16) continue;
        SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " dims " + std::to_string(k) + ", " + std::to_string(v));
        ListsSpec spec;
        spec.kv.shape = {6, 2, k, v}, spec.lengths = {260}, spec.format.type = type;
        if (type == DeviceType::fp8_e4m3) spec.format.k_scale = 0.03f, spec.format.v_scale = 0.02f;
        check_case(spec);
      }
    }
  }
}

TEST_F(GpuLists, every_group) {
  for (int group = 1; group <= kMaxGroup; ++group) {
    for (const int dim : {64, 128, 256}) {
      SCOPED_TRACE("group " + std::to_string(group) + " dim " + std::to_string(dim));
      ListsSpec spec;
      spec.kv.shape = {2 * group, 2, dim, dim}, spec.lengths = {190, 400};
      spec.kv.seed = static_cast<std::uint64_t>(group);
      check_case(spec);
    }
  }
}

TEST_F(GpuLists, many_short_sequences) {
  ListsSpec spec;
  spec.kv.shape = {4, 2, 64, 64}, spec.sinks = 1, spec.recent = 3, spec.represented = 3, spec.clusters = 8;
  spec.lengths.clear();
  for (std::int64_t n = 1; n <= 150; ++n) spec.lengths.push_back(n);
  check_case(spec);
}

TEST_F(GpuLists, one_long_sequence_of_one_head) {
  ListsSpec spec;
  spec.kv.shape = {4, 1, 128, 128}, spec.lengths = {60000}, spec.pieces = 8;
  check_case(spec);
}

TEST_F(GpuLists, nothing_to_attend_is_zero) {
  ListsSpec spec;
  spec.lengths = {40, 40}, spec.sinks = 0, spec.recent = 0, spec.listed = 0, spec.represented = 0;
  check_case(spec);
}

TEST_F(GpuLists, one_token_alone_comes_back) {
  ListsSpec spec;
  spec.sinks = 0, spec.recent = 1, spec.listed = 0, spec.represented = 0, spec.lengths = {90};
  spec.format.type = DeviceType::f32;
  Lists lists(spec);
  lists.run();
  const std::vector<float> out = lists.batch().out();
  for (int h = 0; h < 8; ++h) {
    const std::vector<float> v = lists.kv(0).v(89, h / 4);
    for (std::size_t d = 0; d < 128; ++d) ASSERT_FLOAT_EQ(out[static_cast<std::size_t>(h) * 128 + d], v[d]);
  }
}

TEST_F(GpuLists, represented_clusters_alone) {
  ListsSpec spec;
  spec.sinks = 0, spec.recent = 0, spec.listed = 0, spec.represented = 60, spec.lengths = {64, 64};
  check_case(spec);
}

TEST_F(GpuLists, softcap) {
  for (const float cap : {1.0f, 30.0f}) {
    ListsSpec spec;
    spec.softcap = cap, spec.kv.q_scale = 2;
    check_case(spec);
  }
}

TEST_F(GpuLists, huge_logits_choose_the_largest_key) {
  for (const DeviceType type : {DeviceType::bf16, DeviceType::f32}) {
    ListsSpec spec;
    spec.lengths = {100}, spec.represented = 0, spec.recent = 100, spec.format.type = type;
    Lists lists(spec);
    std::fill(lists.kv(0).q().begin(), lists.kv(0).q().end(), 1.0f);
    for (std::int64_t t = 0; t < 100; ++t) {
      for (int h = 0; h < 2; ++h) lists.kv(0).set_k(t, h, std::vector<float>(128, t == 71 ? 1e30f : -1e30f));
    }
    lists.run();
    lists.expect_status(0, 0);
    const std::vector<float> out = lists.batch().out();
    for (int h = 0; h < 8; ++h) {
      const std::vector<float> v = lists.kv(0).v(71, h / 4);
      for (std::size_t d = 0; d < 128; ++d) ASSERT_FLOAT_EQ(out[static_cast<std::size_t>(h) * 128 + d], v[d]);
    }
  }
}

TEST_F(GpuLists, a_broken_key_breaks_its_own_head_only) {
  for (const DeviceType type : {DeviceType::bf16, DeviceType::f16, DeviceType::f32}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      ListsSpec spec;
      spec.lengths = {300, 200}, spec.format.type = type;
      Lists lists(spec);
      std::vector<float> key = lists.kv(0).k(299, 1);
      key[5] = bad;
      lists.kv(0).set_k(299, 1, key);
      lists.run();
      lists.expect_right(0);
      lists.expect_status(0, device_status::non_finite);
      lists.expect_status(1, 0);
      const std::vector<float> out = lists.batch().out();
      for (std::size_t h = 4; h < 8; ++h) {
        for (std::size_t d = 0; d < 128; ++d) ASSERT_TRUE(std::isnan(out[h * 128 + d])) << "head " << h;
      }
    }
  }
}

TEST_F(GpuLists, numbers_outside_the_sequence_are_reported_and_left_out) {
  for (const std::int32_t bad : {-1, 300, std::numeric_limits<std::int32_t>::max()}) {
    ListsSpec spec;
    spec.lengths = {300, 200}, spec.format.layout = Layout::blocks;
    Lists lists(spec);
    ASSERT_GT(lists.token_count()[0], 0);
    lists.tokens()[0] = bad;
    lists.run();
    lists.expect_status(0, device_status::bad_index);
    lists.expect_status(1, 0);
    lists.expect_right(1);
  }
}

TEST_F(GpuLists, clusters_and_counts_out_of_range_are_reported) {
  ListsSpec spec;
  spec.lengths = {300, 200};
  {
    Lists lists(spec);
    lists.represented()[0] = 200;
    lists.run();
    lists.expect_right(1);
  }
  for (const std::int32_t bad : {-1, 1000000}) {
    Lists lists(spec);
    lists.token_count()[0] = bad;
    lists.run();
    lists.expect_status(0, device_status::bad_index);
    lists.expect_status(1, 0);
    lists.expect_right(1);
  }
}

TEST_F(GpuLists, a_length_out_of_range_gives_zeros_and_is_reported) {
  ListsSpec spec;
  spec.lengths = {300, 200}, spec.listed = 0, spec.represented = 0;
  Lists lists(spec);
  lists.run();
  for (const std::int32_t bad : {-1, 301, 100, std::numeric_limits<std::int32_t>::max()}) {
    lists.batch().set_lengths({bad, 200});
    lists.rerun();
    lists.expect_status(0, device_status::bad_length);
    lists.expect_status(1, 0);
    const std::vector<float> out = lists.batch().out();
    for (std::size_t i = 0; i < 8 * 128; ++i) ASSERT_EQ(out[i], 0.0f);
  }
}

}  // namespace
}  // namespace tactic::test
