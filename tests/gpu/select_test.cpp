// The choice by expected loss on the device against the double-precision reference of select/.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "select/cuda.h"
#include "select/loss.h"
#include "support/device_index.h"

namespace tactic::test {
namespace {

struct Case {
  LayerSpec spec{.kv = {.shape = {8, 2, 128, 128}, .k_type = DType::f32, .v_type = DType::f32, .tokens = 3000}};
  DeviceBatch::Format format{};
  std::vector<std::int64_t> tokens = {3000};  // a sequence each
  Options options{};
  float softcap = 0;
};

// What the reference thinks of one column, in units of what it costs.
struct Want {
  double loss = 0;       // over the price of its rows: > 1 attended
  double tail_loss = 0;  // over the price of its mean V
  std::vector<double> log_weight;
};

struct HeadWant {
  std::vector<Want> columns;
  std::vector<double> reference;  // [G] log-sum-exp
};

HeadWant reference_choice(LayerCase& layer, const Options& options, int head) {
  const Query query = layer.kv().query();
  const HeadTable& table = layer.index().tables[static_cast<std::size_t>(head)];
  const int group = query.shape.group();
  const auto stride = static_cast<std::size_t>(table.stride);
  const auto size = static_cast<std::size_t>(group) * stride;
  std::vector<float> logits(size), half(static_cast<std::size_t>(group) * table.parts.size()), mass(size), ripple(size);
  reference::score_centroids(query, head, table, 0, table.count, logits.data());
  reference::half_variances(query, head, table, half.data());
  const float* h = options.spread ? half.data() : nullptr;
  const float softcap = query.params.softcap;
  PartialStorage fixed(group, query.shape.v_head_dim);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < layer.kv().spec().tokens; ++t) {
    if (t < layer.index().first() || t >= layer.index().last()) ids.push_back(static_cast<std::int32_t>(t));
  }
  reference::attend_list(query, layer.kv().view(), head, {ids.data(), 0, static_cast<std::int64_t>(ids.size())}, fixed.get(),
                         nullptr, 0);
  std::vector<float> top(static_cast<std::size_t>(group));
  for (int g = 0; g < group; ++g) {
    top[static_cast<std::size_t>(g)] = fixed.get().maximum[g];
    for (int c = 0; c < table.count; ++c)
      top[static_cast<std::size_t>(g)] =
          std::max(top[static_cast<std::size_t>(g)], logits[static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c)]);
  }
  reference::estimate_masses(table, group, logits.data(), h, top.data(), mass.data(), softcap);
  reference::representation_ripple(table, group, logits.data(), options.tail_clusters > 0 ? h : nullptr, ripple.data(), softcap);
  HeadWant want;
  for (int g = 0; g < group; ++g) {
    double total = fixed.get().sum[g] * std::exp(static_cast<double>(fixed.get().maximum[g]) - top[static_cast<std::size_t>(g)]);
    for (int c = 0; c < table.count; ++c) total += mass[static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c)];
    want.reference.push_back(std::log(total) + top[static_cast<std::size_t>(g)]);
  }
  const double price = loss_per_row(options.mass);
  for (int c = 0; c < table.count; ++c) {
    Want column;
    const auto n = static_cast<double>(table.size[c]);
    for (int g = 0; g < group; ++g) {
      const std::size_t at = static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c);
      const double all = std::exp(want.reference[static_cast<std::size_t>(g)] - top[static_cast<std::size_t>(g)]);
      column.loss += std::pow(mass[at] / all, 2) * ripple[at] / (price * n);
      double variance = 0;
      if (h != nullptr)
        variance = 2.0 * h[static_cast<std::size_t>(g) * table.parts.size() + static_cast<std::size_t>(table.part_of[c])] *
                   table.spread[c];
      if (softcap > 0) variance *= std::pow(1 - std::pow(static_cast<double>(logits[at]) / softcap, 2), 2);
      const double weight = std::log(n) + static_cast<double>(logits[at]) + std::log(std::cosh(std::sqrt(variance)));
      column.log_weight.push_back(weight);
      column.tail_loss +=
          std::exp(2 * (weight - want.reference[static_cast<std::size_t>(g)])) / (price * kRepresentedRows * 0.25);
    }
    want.columns.push_back(column);
  }
  return want;
}

// The device's lists, on the host.
struct HostLists {
  HostLists(const DeviceLists& lists, int slots, int group) : pieces(lists.pieces), group_(group), lists_(lists) {
    const auto p = static_cast<std::size_t>(slots * lists.pieces);
    first = copy(lists.token_first, p), count = copy(lists.token_count, p), represented_count = copy(lists.represented_count, p);
    tokens = copy(lists.tokens, static_cast<std::size_t>(slots) * static_cast<std::size_t>(lists.token_stride));
    represented = copy(lists.represented, p * static_cast<std::size_t>(lists.represented_stride));
    log_weight = copy(lists.log_weight, p * static_cast<std::size_t>(lists.represented_stride * group));
    reference = copy(lists.reference, static_cast<std::size_t>(slots * group));
  }
  std::vector<std::int32_t> tokens_of(int slot) const {
    std::vector<std::int32_t> all;
    for (int p = 0; p < pieces; ++p) {
      const auto at = static_cast<std::size_t>(slot * pieces + p);
      for (int i = 0; i < count[at]; ++i)
        all.push_back(tokens[static_cast<std::size_t>(slot) * static_cast<std::size_t>(lists_.token_stride) +
                             static_cast<std::size_t>(first[at] + i)]);
    }
    return all;
  }
  std::map<int, std::vector<float>> represented_of(int slot) const {
    std::map<int, std::vector<float>> all;
    for (int p = 0; p < pieces; ++p) {
      const auto at = static_cast<std::size_t>(slot * pieces + p);
      for (int i = 0; i < represented_count[at]; ++i) {
        const std::size_t entry = at * static_cast<std::size_t>(lists_.represented_stride) + static_cast<std::size_t>(i);
        const auto begin = log_weight.begin() + static_cast<std::ptrdiff_t>(entry) * group_;
        EXPECT_TRUE(all.emplace(represented[entry], std::vector<float>(begin, begin + group_)).second) << "twice";
      }
    }
    return all;
  }

  int pieces;
  std::vector<std::int32_t> first, count, represented_count, tokens, represented;
  std::vector<float> log_weight, reference;

 private:
  template <class T>
  static std::vector<T> copy(const T* from, std::size_t size) {
    std::vector<T> to(size);
    cuda_ok(cudaMemcpy(to.data(), from, size * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
  int group_;
  DeviceLists lists_;
};

class Chosen {
 public:
  explicit Chosen(const Case& c) : c_(c) {
    std::vector<const LayerIndex*> indexes;
    for (std::size_t s = 0; s < c.tokens.size(); ++s) {
      LayerSpec spec = c.spec;
      spec.kv.tokens = c.tokens[s], spec.kv.seed += 100 * s;
      layers.push_back(std::make_unique<LayerCase>(spec));
      layers.back()->kv().params().softcap = c.softcap;
      cases_.push_back(&layers.back()->kv());
    }
    batch = std::make_unique<DeviceBatch>(cases_, c.format);
    for (auto& layer : layers) {
      round_to_device(layer->index());
      indexes.push_back(&layer->index());
    }
    columns = std::make_unique<DeviceColumns>(indexes, c.spec.kv.shape);
  }
  HostLists run() {
    const DeviceQuery query = batch->query();
    const DeviceArray<std::byte> scratch(cuda::select_scratch_bytes(query, batch->kv(), columns->index(), c_.options), 0);
    const DeviceLists lists = cuda::select_lists(query, batch->kv(), columns->index(), c_.options, scratch.get());
    cuda::select(query, batch->kv(), columns->index(), c_.options, lists, batch->status(), scratch.get(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
    return HostLists(lists, static_cast<int>(layers.size()) * query.shape.kv_heads, query.shape.group());
  }

  std::vector<std::unique_ptr<LayerCase>> layers;
  std::unique_ptr<DeviceBatch> batch;
  std::unique_ptr<DeviceColumns> columns;

 private:
  Case c_;
  std::vector<KvCase*> cases_;
};

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

void check(const Case& c) {
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
        Case c;
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
      Case c;
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
  Case c;
  c.spec.segments = 3;
  c.tokens = {3000, 2000};
  check(c);
}

TEST_F(GpuSelect, ManyRecentTokens) {
  Case c;
  c.spec.recent = 700;
  check(c);
}

TEST_F(GpuSelect, Softcap) {
  Case c;
  c.softcap = 20;
  check(c);
}

TEST_F(GpuSelect, WithoutSpread) {
  Case c;
  c.options.spread = false;
  check(c);
}

TEST_F(GpuSelect, WithoutTail) {
  Case c;
  c.options.tail_clusters = 0;
  check(c);
}

TEST_F(GpuSelect, LongSequenceManyPieces) {
  Case c;
  c.spec.topics = 400;
  c.tokens = {20000};
  check(c);
}

TEST_F(GpuSelect, PiecesBehindTheLastColumn) {
  Case c;
  c.spec.topics = 67;
  c.tokens = {20000, 1100, 1003};
  check(c);
}

// Tokens that the reference takes for goal mass, and the share of each head's estimated mass that `listed` covers.
struct MassWant {
  std::size_t tokens = 0;
  std::vector<double> covered;
};

MassWant reference_mass(LayerCase& layer, const Options& options, int head, const std::set<std::int32_t>& listed) {
  const Query query = layer.kv().query();
  const HeadTable& table = layer.index().tables[static_cast<std::size_t>(head)];
  const int group = query.shape.group();
  const auto stride = static_cast<std::size_t>(table.stride);
  const auto size = static_cast<std::size_t>(group) * stride;
  std::vector<float> logits(size), half(static_cast<std::size_t>(group) * table.parts.size()), mass(size);
  reference::score_centroids(query, head, table, 0, table.count, logits.data());
  reference::half_variances(query, head, table, half.data());
  const HeadWant sums = reference_choice(layer, options, head);
  std::vector<float> top, fixed, target(static_cast<std::size_t>(group), options.mass);
  for (const double r : sums.reference) top.push_back(static_cast<float>(r));
  reference::estimate_masses(table, group, logits.data(), half.data(), top.data(), mass.data());
  MassWant want;
  for (int g = 0; g < group; ++g) {
    double columns = 0, covered = 0;
    for (int c = 0; c < table.count; ++c) {
      const double m = mass[static_cast<std::size_t>(g) * stride + static_cast<std::size_t>(c)];
      columns += m;
      if (listed.count(table.tokens[static_cast<std::size_t>(c)][0]) == 1) covered += m;
    }
    fixed.push_back(static_cast<float>(1 - columns));
    want.covered.push_back(covered + 1 - columns);
  }
  std::vector<std::uint8_t> chosen(stride, 0);
  std::vector<std::int32_t> list(stride, 0);
  const int count = reference::choose(table, group, mass.data(), fixed.data(), target.data(), options.joint, chosen.data(),
                                      list.data(), nullptr);
  for (int i = 0; i < count; ++i) want.tokens += table.tokens[static_cast<std::size_t>(list[static_cast<std::size_t>(i)])].size();
  return want;
}

TEST_F(GpuSelect, GoalMassReachesEveryHeadsTargetWithFewTokens) {
  for (const bool joint : {true, false}) {
    for (const int group : {1, 4, 8}) {
      Case c;
      c.spec.kv.shape = {2 * group, 2, 128, 128};
      c.tokens = {3000, 5000};
      c.spec.topics = 120;
      c.options.goal = Goal::mass;
      c.options.joint = joint;
      c.options.tail_clusters = 32;
      SCOPED_TRACE("group " + std::to_string(group) + (joint ? " joint" : " apart"));
      Chosen chosen(c);
      const HostLists lists = chosen.run();
      for (int slot = 0; slot < 4; ++slot) {
        const std::vector<std::int32_t> tokens = lists.tokens_of(slot);
        const std::set<std::int32_t> listed(tokens.begin(), tokens.end());
        ASSERT_EQ(listed.size(), tokens.size());
        const MassWant want = reference_mass(*chosen.layers[static_cast<std::size_t>(slot / 2)], c.options, slot % 2, listed);
        for (const double covered : want.covered) ASSERT_GE(covered, c.options.mass - 2e-3);
        // A cut falls on the border of a bin of 1/16 octave, and nothing is pruned afterwards.
        ASSERT_LE(static_cast<double>(tokens.size()), 1.15 * static_cast<double>(want.tokens) + 64);
        ASSERT_LE(lists.represented_of(slot).size(), 32u);
        ASSERT_FALSE(lists.represented_of(slot).empty());
      }
    }
  }
}

TEST_F(GpuSelect, PaperTakesTheTokensOfAlgorithmOne) {
  for (const int group : {1, 4}) {
    Case c;
    c.spec.kv.shape = {2 * group, 2, 128, 128};
    c.spec.int8_centroids = false;
    c.tokens = {3000, 5000};
    c.options = paper_options();
    SCOPED_TRACE("group " + std::to_string(group));
    Chosen chosen(c);
    const HostLists lists = chosen.run();
    for (int slot = 0; slot < 4; ++slot) {
      LayerCase& layer = *chosen.layers[static_cast<std::size_t>(slot / 2)];
      const Query query = layer.kv().query();
      const HeadTable& table = layer.index().tables[static_cast<std::size_t>(slot % 2)];
      std::vector<float> logits(static_cast<std::size_t>(group * table.stride)), fixed, top, estimated(kMaxGroup);
      std::vector<std::int64_t> budget(kMaxGroup);
      reference::score_centroids(query, slot % 2, table, 0, table.count, logits.data());
      PartialStorage outside(group, 128);
      std::vector<std::int32_t> ids;
      const std::int64_t n = layer.kv().spec().tokens;
      for (std::int64_t t = 0; t < n; ++t) {
        if (t < layer.index().first() || t >= layer.index().last()) ids.push_back(static_cast<std::int32_t>(t));
      }
      reference::attend_list(query, layer.kv().view(), slot % 2, {ids.data(), 0, static_cast<std::int64_t>(ids.size())},
                             outside.get(), nullptr, 0);
      for (int g = 0; g < group; ++g) {
        top.push_back(outside.get().maximum[g]);
        fixed.push_back(outside.get().sum[g]);
      }
      std::vector<std::uint64_t> bits(static_cast<std::size_t>((n + 63) / 64), 0);
      reference::choose_paper(query, layer.kv().view(), slot % 2, table, logits.data(), fixed.data(), top.data(), c.options,
                              bits.data(), budget.data(), estimated.data(), nullptr);
      std::set<std::int32_t> want;
      for (std::int64_t t = 0; t < n; ++t) {
        if ((bits[static_cast<std::size_t>(t / 64)] >> (t % 64) & 1) != 0) want.insert(static_cast<std::int32_t>(t));
      }
      const std::vector<std::int32_t> got = lists.tokens_of(slot);
      ASSERT_TRUE(std::is_sorted(got.begin(), got.end()));
      std::size_t common = 0;
      for (const std::int32_t t : got) common += want.count(t);
      ASSERT_FALSE(want.empty());
      // The budget follows from sums of weights that err by 1e-3, and clusters of equal logits may change places.
      ASSERT_GE(static_cast<double>(common), 0.98 * static_cast<double>(std::max(got.size(), want.size())) - 4)
          << got.size() << " of " << want.size();
    }
  }
}

TEST_F(GpuSelect, TwiceTheSameBits) {
  Case c;
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
  Case c;
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
  Case c;
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
