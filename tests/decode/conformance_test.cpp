// The CPU step against the reference step: both pipelines, every switch, every shape, types, workers and instruction sets.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "support/layer.h"

namespace tactic::test {
namespace {

struct Variant {
  const char* name;
  void (*change)(LayerSpec&, Options&);
};

Options paper_choice() {
  Options o = paper_options();
  o.cluster_size = 16;
  return o;
}

class Conformance : public testing::TestWithParam<Variant> {};

// Largest weight that a query head gives to tokens that only one of the two steps attended.
double disputed_mass(const StepResult& a, const StepResult& b, const std::vector<double>& weights, std::int64_t tokens,
                     int kv_head, int q_head) {
  double sum = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (a.has(kv_head, t) != b.has(kv_head, t)) sum += weights[static_cast<std::size_t>(q_head * tokens + t)];
  }
  return sum;
}

// The sets may differ by the clusters of one histogram bin or a tie. Then the outputs differ by those tokens' weights: with D
// their share of the mass, left out or replaced by an estimate of it (tail), and m the mass reached, no element moves by more
// than 2 D max|v| / m, twice that with a tail whose estimate is off by D once more.
void expect_agreement(LayerCase& layer, const StepResult& got, const StepResult& wanted) {
  const Shape& shape = layer.spec().kv.shape;
  const std::int64_t tokens = layer.spec().kv.tokens;
  const std::vector<double> weights = true_weights(layer.kv().query(), layer.kv().view());
  const Tolerance bound = tolerance(layer.kv());
  double v_max = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      for (const float x : layer.kv().v(t, h)) v_max = std::max(v_max, std::abs(static_cast<double>(x)));
    }
  }
  ASSERT_EQ(got.status, Status::ok);
  ASSERT_EQ(wanted.status, Status::ok);
  for (int q = 0; q < shape.q_heads; ++q) {
    const int h = q / shape.group();
    const double disputed = disputed_mass(got, wanted, weights, tokens, h, q);
    ASSERT_LT(disputed, 0.01) << "query head " << q << ": the sets differ by more than a tie";
    const double reached = mass_reached(wanted, weights, shape, tokens, q);
    const double allowed = bound.output + 4 * disputed * v_max / std::max(reached - disputed, 0.1);
    for (int i = 0; i < shape.v_head_dim; ++i) {
      const auto at = static_cast<std::size_t>(q * shape.v_head_dim + i);
      ASSERT_NEAR(got.out[at], wanted.out[at], allowed) << "query head " << q << " element " << i << " disputed " << disputed;
    }
    ASSERT_NEAR(got.lse[static_cast<std::size_t>(q)], wanted.lse[static_cast<std::size_t>(q)],
                bound.weight + 4 * disputed / std::max(reached - disputed, 0.1));
    ASSERT_NEAR(got.estimated[static_cast<std::size_t>(q)], wanted.estimated[static_cast<std::size_t>(q)], 0.01);
  }
}

TEST_P(Conformance, CpuStepIsTheReferenceStep) {
  LayerSpec spec;
  Options options;
  options.min_context = 256;
  options.cluster_size = 16;
  options.tail_clusters = 16;
  options.goal = Goal::mass;
  spec.kv.shape = {6, 2, 64, 64};
  GetParam().change(spec, options);
  LayerCase layer(spec);
  const std::vector<float> sinks(static_cast<std::size_t>(spec.kv.shape.q_heads), 1.5f);
  if (std::string(GetParam().name).find("sinks") != std::string::npos) layer.kv().params().sink_logits = sinks.data();
  if (std::string(GetParam().name).find("softcap") != std::string::npos) layer.kv().params().softcap = 6.0f;
  if (std::string(GetParam().name).find("margin") != std::string::npos) {
    layer.index().margin.assign(static_cast<std::size_t>(spec.kv.shape.kv_heads), 0.35f);
    layer.index().margin.back() = -1;
  }
  const Query query = layer.kv().query();
  const KvView kv = layer.kv().view();
  const StepResult wanted = reference_step(query, kv, &layer.index(), options);
  for (const Isa isa : supported_isas()) {
    const IsaScope scope(isa);
    for (int workers = 1; workers <= 3; ++workers) {
      SCOPED_TRACE(std::string(name_of(isa)) + ", workers " + std::to_string(workers));
      const auto team = make_thread_team(workers);
      const WorkspacePtr workspace = make_workspace();
      for (int again = 0; again < 2; ++again)  // the second step finds the workspace used
        expect_agreement(layer, cpu_step(*team, *workspace, query, kv, &layer.index(), options), wanted);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Variants, Conformance,
    testing::Values(
        Variant{"tactic", [](LayerSpec&, Options&) {}}, Variant{"no_spread", [](LayerSpec&, Options& o) { o.spread = false; }},
        Variant{"by_error", [](LayerSpec&, Options& o) { o.goal = Goal::error; }},
        Variant{"by_error_low_mass", [](LayerSpec&, Options& o) { o.goal = Goal::error, o.mass = 0.3f; }},
        Variant{"by_error_no_verify", [](LayerSpec&, Options& o) { o.goal = Goal::error, o.verify = o.tail_factor = false; }},
        Variant{"by_error_no_spread", [](LayerSpec&, Options& o) { o.goal = Goal::error, o.spread = false; }},
        Variant{"by_error_no_tail", [](LayerSpec&, Options& o) { o.goal = Goal::error, o.tail_clusters = 0; }},
        Variant{"by_error_segments", [](LayerSpec& s, Options& o) { o.goal = Goal::error, s.segments = 3; }},
        Variant{"by_error_softcap", [](LayerSpec&, Options& o) { o.goal = Goal::error; }},
        Variant{"no_joint", [](LayerSpec&, Options& o) { o.joint = false; }},
        Variant{"no_verify", [](LayerSpec&, Options& o) { o.verify = o.tail_factor = false; }},
        Variant{"no_tail_factor", [](LayerSpec&, Options& o) { o.tail_factor = false; }},
        Variant{"no_tail", [](LayerSpec&, Options& o) { o.tail_clusters = 0; }},
        Variant{"all_switches_off",
                [](LayerSpec&, Options& o) {
                  o.spread = o.joint = o.verify = o.tail_factor = false;
                  o.tail_clusters = 0;
                }},
        Variant{"tail_of_all", [](LayerSpec&, Options& o) { o.tail_clusters = 5000; }},
        Variant{"low_mass", [](LayerSpec&, Options& o) { o.mass = 0.3f; }},
        Variant{"high_mass", [](LayerSpec&, Options& o) { o.mass = 0.999f; }},
        Variant{"f16_centroids", [](LayerSpec& s, Options&) { s.int8_centroids = false; }},
        Variant{"segments", [](LayerSpec& s, Options&) { s.segments = 3; }}, Variant{"margin", [](LayerSpec&, Options&) {}},
        Variant{"softcap", [](LayerSpec&, Options&) {}}, Variant{"sinks", [](LayerSpec&, Options&) {}},
        Variant{"softcap_sinks_margin", [](LayerSpec&, Options&) {}},
        Variant{"no_sinks_one_recent", [](LayerSpec& s, Options&) { s.sinks = 0, s.recent = 1; }},
        Variant{"nothing_recent", [](LayerSpec& s, Options&) { s.sinks = 0, s.recent = 0; }},
        Variant{"long_recent", [](LayerSpec& s, Options&) { s.recent = 900; }},
        Variant{"paper", [](LayerSpec& s, Options& o) { o = paper_choice(), o.min_context = 256, s.int8_centroids = false; }},
        Variant{"paper_softcap_sinks",
                [](LayerSpec& s, Options& o) { o = paper_choice(), o.min_context = 256, s.int8_centroids = false; }},
        Variant{
            "paper_segments",
            [](LayerSpec& s, Options& o) { o = paper_choice(), o.min_context = 256, s.int8_centroids = false, s.segments = 3; }},
        Variant{
            "paper_low_mass",
            [](LayerSpec& s, Options& o) { o = paper_choice(), o.min_context = 256, o.mass = 0.3f, s.int8_centroids = false; }}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Shapes, Conformance,
    testing::Values(Variant{"group1_f32",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {3, 3, 64, 64}, s.kv.k_type = s.kv.v_type = DType::f32;
                            }},
                    Variant{"group16_d80",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {16, 1, 80, 80};
                            }},
                    Variant{"group7_d96_bf16",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {14, 2, 96, 96}, s.kv.k_type = s.kv.v_type = DType::bf16;
                            }},
                    Variant{"group4_d128",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {8, 2, 128, 128};
                            }},
                    Variant{"group2_d256_v64_mixed",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {4, 2, 256, 64}, s.kv.v_type = DType::bf16;
                            }},
                    Variant{"group8_d64_v128",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {8, 1, 64, 128};
                            }},
                    // Enough KV heads that each of three workers ranks, chooses and attends head by head.
                    Variant{"many_kv_heads",
                            [](LayerSpec& s, Options&) {
                              s.kv.shape = {14, 7, 64, 64};
                            }},
                    Variant{"many_kv_heads_by_error",
                            [](LayerSpec& s, Options& o) {
                              s.kv.shape = {14, 7, 64, 64}, o.goal = Goal::error;
                            }},
                    Variant{"many_kv_heads_of_paper",
                            [](LayerSpec& s, Options& o) {
                              o = paper_choice(), o.min_context = 256;
                              s.kv.shape = {14, 7, 64, 64}, s.int8_centroids = false;
                            }},
                    Variant{"padded", [](LayerSpec& s, Options&) { s.kv.layout = Layout::padded; }},
                    Variant{"head_major", [](LayerSpec& s, Options&) { s.kv.layout = Layout::head_major; }},
                    Variant{"blocks", [](LayerSpec& s, Options&) { s.kv.layout = Layout::blocks; }},
                    Variant{"blocks_of_one", [](LayerSpec& s, Options&) { s.kv.layout = Layout::blocks, s.kv.block_size = 1; }},
                    Variant{"paper_group7_d96_blocks",
                            [](LayerSpec& s, Options& o) {
                              o = paper_choice(), o.min_context = 256;
                              s.kv.shape = {14, 2, 96, 96}, s.kv.layout = Layout::blocks, s.int8_centroids = false;
                            }}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tactic::test
