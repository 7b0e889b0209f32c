// The choice by expected loss on the device against the double-precision reference of select/.
#include "select_case.h"

namespace tactic::test {
namespace {

// The device's q has 15 bits, its exponentials an error of 2^-22 of the exponent: logits err by about 1e-3 at the most. A column
// nearer to the border than this may fall either way.
constexpr double kBorder = 0.01;

void check_head(LayerCase& layer, const Options& options, const HostLists& lists, int slot, int head, std::size_t* attended,
                std::size_t* represented) {
  const HeadWant want = reference_choice(layer, options, head);
  const HeadTable& table = layer.index().tables[static_cast<std::size_t>(head)];
  const int group = layer.spec().kv.shape.group();
  for (int g = 0; g < group; ++g)
    ASSERT_NEAR(lists.reference[static_cast<std::size_t>(slot * group + g)], want.reference[static_cast<std::size_t>(g)], 5e-3)
        << "head " << g;
  const std::vector<std::int32_t> tokens = lists.tokens_of(slot);
  const std::set<std::int32_t> listed(tokens.begin(), tokens.end());
  ASSERT_EQ(listed.size(), tokens.size()) << "a token twice";
  const auto stands_in = lists.represented_of(slot);
  std::size_t seen = 0;
  for (int c = 0; c < table.count; ++c) {
    std::size_t in = 0;
    for (const std::int32_t t : table.tokens[static_cast<std::size_t>(c)]) in += listed.count(t);
    ASSERT_TRUE(in == 0 || in == table.tokens[static_cast<std::size_t>(c)].size()) << "column " << c << " in part";
    seen += in;
    const Want& column = want.columns[static_cast<std::size_t>(c)];
    const auto found = stands_in.find(c);
    ASSERT_FALSE(in > 0 && found != stands_in.end());
    *attended += in, *represented += found != stands_in.end() ? 1 : 0;
    if (std::abs(column.loss - 1) > kBorder) {
      ASSERT_EQ(in > 0, column.loss > 1) << "column " << c << " loss " << column.loss;
      const bool worth = options.tail_clusters > 0 && column.tail_loss > 1;
      if (in == 0 && std::abs(column.tail_loss - 1) > kBorder) {
        ASSERT_EQ(found != stands_in.end(), worth) << "column " << c << " loss " << column.loss << " tail " << column.tail_loss;
      }
    }
    if (found == stands_in.end()) continue;
    for (int g = 0; g < group; ++g)
      ASSERT_NEAR(found->second[static_cast<std::size_t>(g)], column.log_weight[static_cast<std::size_t>(g)], 5e-3)
          << "column " << c;
  }
  ASSERT_EQ(seen, listed.size()) << "tokens of no column";
}

void check(const SelectCase& c) {
  Chosen chosen(c);
  const HostLists lists = chosen.run();
  const int heads = c.spec.kv.shape.kv_heads;
  std::size_t attended = 0, represented = 0;
  for (std::size_t s = 0; s < chosen.layers.size(); ++s) {
    ASSERT_EQ(chosen.batch->statuses()[s], 0u);
    for (int h = 0; h < heads; ++h) {
      SCOPED_TRACE("sequence " + std::to_string(s) + " head " + std::to_string(h));
      check_head(*chosen.layers[s], c.options, lists, static_cast<int>(s) * heads + h, h, &attended, &represented);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  EXPECT_GT(attended, 0u) << "the case chooses nothing";
  if (c.options.tail_clusters > 0) {
    EXPECT_GT(represented, 0u) << "the case represents nothing";
  }
}

class GpuSelect : public OnDevice {};

TEST_F(GpuSelect, ChoosesByLossLikeTheReference) { check({}); }

TEST_F(GpuSelect, EveryHeadDimGroupAndCentroidType) {
  for (const int dim : {64, 80, 96, 128, 256}) {
    for (const int group : {1, 3, 4, 7, 8, 16}) {
      for (const bool int8 : {true, false}) {
        SelectCase c;
        c.spec.kv.shape = {2 * group, 2, dim, dim};
        c.tokens = {1000};
        c.spec.int8_centroids = int8;
        c.spec.sharpness = 1.5f;
        SCOPED_TRACE("dim " + std::to_string(dim) + " group " + std::to_string(group) + (int8 ? " int8" : " bf16"));
        check(c);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(GpuSelect, EveryTypeAndLayout) {
  for (const DeviceType type : {DeviceType::f32, DeviceType::f16, DeviceType::bf16, DeviceType::fp8_e4m3}) {
    for (const Layout layout : {Layout::side_by_side, Layout::head_major, Layout::blocks}) {
      SelectCase c;
      c.tokens = {900, 1500};
      c.format.type = type;
      c.format.layout = layout;
      c.format.query = type == DeviceType::fp8_e4m3 ? DeviceType::bf16 : type;
      c.format.k_scale = type == DeviceType::fp8_e4m3 ? 0.5f : 1.0f;
      SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " layout " + std::to_string(static_cast<int>(layout)));
      check(c);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(GpuSelect, SegmentsHaveTheirOwnCovariance) {
  SelectCase c;
  c.spec.segments = 3;
  c.tokens = {3000, 2000};
  check(c);
}

TEST_F(GpuSelect, ManyRecentTokens) {
  SelectCase c;
  c.spec.recent = 700;
  check(c);
}

TEST_F(GpuSelect, Softcap) {
  SelectCase c;
  c.softcap = 20;
  check(c);
}

TEST_F(GpuSelect, WithoutSpread) {
  SelectCase c;
  c.options.spread = false;
  check(c);
}

TEST_F(GpuSelect, WithoutTail) {
  SelectCase c;
  c.options.tail_clusters = 0;
  check(c);
}

TEST_F(GpuSelect, LongSequenceManyPieces) {
  SelectCase c;
  c.spec.topics = 400;
  c.tokens = {20000};
  check(c);
}

// More heads than pairs of processors, so a thread block a head with more columns than threads; with clusters of four tokens,
// more than find room in shared memory early.
TEST_F(GpuSelect, ManyColumnsABlock) {
  struct Kind {
    int group, sequences, cluster_size, segments;
  };
  for (const Kind& kind : {Kind{4, 17, 16, 1}, Kind{8, 17, 16, 1}, Kind{4, 17, 4, 2}, Kind{8, 9, 4, 1}}) {
    SelectCase c;
    c.spec.kv.shape = {8 * kind.group, 8, 64, 64};
    c.spec.cluster_size = kind.cluster_size;
    c.spec.segments = kind.segments;
    c.tokens.assign(static_cast<std::size_t>(kind.sequences), 1003);
    c.tokens[1] = 12000;
    SCOPED_TRACE("group " + std::to_string(kind.group) + ", clusters of " + std::to_string(kind.cluster_size));
    check(c);
    if (HasFatalFailure()) return;
  }
}

// At head dim 128, one of the most columns that a block of 512 threads is given, and an odd head dim.
TEST_F(GpuSelect, ManyColumnsOfLongRows) {
  for (const int dim : {128, 80}) {
    SelectCase c;
    c.spec.kv.shape = {32, 8, dim, dim};
    c.spec.cluster_size = 4;
    c.tokens.assign(9, 1003);
    c.tokens[1] = 12000;
    SCOPED_TRACE("head dim " + std::to_string(dim));
    check(c);
    if (HasFatalFailure()) return;
  }
}

TEST_F(GpuSelect, PiecesBehindTheLastColumn) {
  SelectCase c;
  c.spec.topics = 67;
  c.tokens = {20000, 1100, 1003};
  check(c);
}

TEST_F(GpuSelect, TwiceTheSameBits) {
  SelectCase c;
  c.tokens = {5000, 700, 3000};
  Chosen chosen(c);
  const HostLists one = chosen.run(), two = chosen.run();
  EXPECT_EQ(one.count, two.count);
  EXPECT_EQ(one.reference, two.reference);
  for (int slot = 0; slot < 6; ++slot) {
    EXPECT_EQ(one.tokens_of(slot), two.tokens_of(slot));
    EXPECT_EQ(one.represented_of(slot), two.represented_of(slot));
  }
}

TEST_F(GpuSelect, NanInOneQueryHeadLeavesTheOthers) {
  SelectCase c;
  c.tokens = {3000, 3000};
  Chosen clean(c), chosen(c);
  auto& q = chosen.layers[1]->kv().q();
  q[5 * 128 + 7] = NAN;  // sequence 1, query head 5: KV head 1
  chosen.batch->upload_queries();
  const HostLists want = clean.run(), got = chosen.run();
  EXPECT_EQ(chosen.batch->statuses()[0], 0u);
  EXPECT_EQ(chosen.batch->statuses()[1], device_status::non_finite);
  for (const int slot : {0, 1, 2}) EXPECT_EQ(got.tokens_of(slot), want.tokens_of(slot));
  for (int g = 0; g < 4; ++g) {
    const auto at = static_cast<std::size_t>(3 * 4 + g);
    EXPECT_EQ(std::isfinite(got.reference[at]), g != 1) << g;
    if (g != 1) {
      EXPECT_EQ(got.reference[at], want.reference[at]);
    }
  }
  // the other heads' columns alone
  const std::vector<std::int32_t> all = want.tokens_of(3), rest = got.tokens_of(3);
  const std::set<std::int32_t> before(all.begin(), all.end());
  EXPECT_FALSE(rest.empty());
  for (const std::int32_t t : rest) EXPECT_TRUE(before.count(t) == 1);
}

TEST_F(GpuSelect, LengthOutOfRangeIsReported) {
  SelectCase c;
  c.tokens = {3000, 3000, 3000};
  Chosen chosen(c);
  chosen.batch->set_lengths({3000, 4000, 100});  // longer than max_length; shorter than what is clustered
  const HostLists lists = chosen.run();
  EXPECT_EQ(chosen.batch->statuses(), (std::vector<std::uint32_t>{0, device_status::bad_length, device_status::bad_length}));
  EXPECT_FALSE(lists.tokens_of(0).empty());
  for (int slot = 2; slot < 6; ++slot) EXPECT_TRUE(lists.tokens_of(slot).empty());
}

}  // namespace
}  // namespace tactic::test
