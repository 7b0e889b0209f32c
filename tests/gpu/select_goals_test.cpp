// Goal mass and Algorithm 1 of the paper on the device against the double-precision reference of select/.
#include "core/cuda.h"
#include "select_case.h"

namespace tactic::test {
namespace {

class GpuGoals : public OnDevice {};

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

TEST_F(GpuGoals, MassReachesEveryHeadsTargetWithFewTokens) {
  for (const bool joint : {true, false}) {
    for (const int group : {1, 4, 8}) {
      SelectCase c;
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

// Tokens that Algorithm 1 takes of one KV head, by the reference.
std::set<std::int32_t> reference_paper(LayerCase& layer, const Options& options, int head) {
  const Query query = layer.kv().query();
  const HeadTable& table = layer.index().tables[static_cast<std::size_t>(head)];
  const int group = query.shape.group();
  std::vector<float> logits(static_cast<std::size_t>(group * table.stride)), fixed, top, estimated(kMaxGroup);
  std::vector<std::int64_t> budget(kMaxGroup);
  reference::score_centroids(query, head, table, 0, table.count, logits.data());
  PartialStorage outside(group, query.shape.v_head_dim);
  std::vector<std::int32_t> ids;
  const std::int64_t n = layer.kv().spec().tokens;
  for (std::int64_t t = 0; t < n; ++t) {
    if (t < layer.index().first() || t >= layer.index().last()) ids.push_back(static_cast<std::int32_t>(t));
  }
  reference::attend_list(query, layer.kv().view(), head, {ids.data(), 0, static_cast<std::int64_t>(ids.size())}, outside.get(),
                         nullptr, 0);
  for (int g = 0; g < group; ++g) {
    top.push_back(outside.get().maximum[g]);
    fixed.push_back(outside.get().sum[g]);
  }
  std::vector<std::uint64_t> bits(static_cast<std::size_t>((n + 63) / 64), 0);
  reference::choose_paper(query, layer.kv().view(), head, table, logits.data(), fixed.data(), top.data(), options, bits.data(),
                          budget.data(), estimated.data(), nullptr);
  std::set<std::int32_t> want;
  for (std::int64_t t = 0; t < n; ++t) {
    if ((bits[static_cast<std::size_t>(t / 64)] >> (t % 64) & 1) != 0) want.insert(static_cast<std::int32_t>(t));
  }
  return want;
}

void check_paper(const SelectCase& c) {
  Chosen chosen(c);
  const HostLists lists = chosen.run();
  const int heads = c.spec.kv.shape.kv_heads;
  for (int slot = 0; slot < static_cast<int>(c.tokens.size()) * heads; ++slot) {
    const std::set<std::int32_t> want =
        reference_paper(*chosen.layers[static_cast<std::size_t>(slot / heads)], c.options, slot % heads);
    const std::vector<std::int32_t> tokens = lists.tokens_of(slot);
    const std::set<std::int32_t> got(tokens.begin(), tokens.end());
    ASSERT_EQ(got.size(), tokens.size()) << "a token twice";
    std::size_t common = 0;
    for (const std::int32_t t : got) common += want.count(t);
    ASSERT_FALSE(want.empty());
    // The budget follows from sums of weights that err by 1e-3, and clusters of equal logits may change places.
    ASSERT_GE(static_cast<double>(common), 0.98 * static_cast<double>(std::max(got.size(), want.size())) - 4)
        << got.size() << " of " << want.size() << " slot " << slot;
    ASSERT_TRUE(lists.represented_of(slot).empty());
  }
}

TEST_F(GpuGoals, PaperTakesTheTokensOfAlgorithmOne) {
  for (const int group : {1, 4}) {
    for (const float mass : {0.5f, 0.9f, 0.99f}) {
      SelectCase c;
      c.spec.kv.shape = {2 * group, 2, 128, 128};
      c.spec.int8_centroids = false;
      c.tokens = {3000, 5000};
      c.options = paper_options();
      c.options.mass = mass;
      SCOPED_TRACE("group " + std::to_string(group) + " P " + std::to_string(mass));
      check_paper(c);
      if (HasFatalFailure()) return;
    }
  }
}

// More clusters than are sorted at once.
TEST_F(GpuGoals, PaperMergesSortedRuns) {
  if (!cuda::has_sm90_code())
    GTEST_SKIP() << "without thread-block clusters one block holds a KV head's clusters: too few for several runs";
  SelectCase c;
  c.spec.kv.shape = {4, 1, 64, 64};
  c.spec.int8_centroids = false;
  c.spec.cluster_size = 2;
  c.tokens = {18000};
  c.options = paper_options();
  c.options.cluster_size = 2;
  check_paper(c);
}

}  // namespace
}  // namespace tactic::test
