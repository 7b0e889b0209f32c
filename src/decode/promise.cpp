#include "decode/promise.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tactic {
namespace {

constexpr float kMargins[] = {1, .7f, .5f, .35f, .25f, .15f, .08f, .04f};
// Share of (probe, query head) that must reach the mass. estimation.md 6 took 0.9 and ended at 0.952 to 0.958 of later steps; on
// heads all as hard as its hardest that is 0.89 of them (tests/decode/promise_test.cpp), and 0.95 is what is promised.
constexpr double kWanted = 0.95;

// True weights of one probe: [q_heads, tokens], each row summing to 1.
void true_weights(Team& team, const Query& query, const KvView& kv, std::vector<float>& weights) {
  const int group = query.shape.group();
  const auto tokens = static_cast<std::size_t>(kv.tokens);
  team.run([&](Worker& worker) {
    const auto [first, last] = worker.share(query.shape.kv_heads);
    for (auto h = static_cast<int>(first); h < static_cast<int>(last); ++h) {
      float* rows = weights.data() + static_cast<std::size_t>(h * group) * tokens;
      score_list(query, kv, h, {nullptr, 0, kv.tokens}, rows, kv.tokens);
      for (int g = 0; g < group; ++g) {
        float* row = rows + static_cast<std::size_t>(g) * tokens;
        const float top = *std::max_element(row, row + tokens);
        double sum = 0;
        for (std::size_t t = 0; t < tokens; ++t) sum += row[t] = std::exp(row[t] - top);
        for (std::size_t t = 0; t < tokens; ++t) row[t] = static_cast<float>(row[t] / sum);
      }
    }
  });
}

double mass_of(const float* weights, const std::uint64_t* bits, std::int64_t tokens) {
  double mass = 0;
  for (std::int64_t word = 0; word * 64 < tokens; ++word) {
    for (std::uint64_t rest = bits[word]; rest != 0; rest &= rest - 1) mass += weights[word * 64 + __builtin_ctzll(rest)];
  }
  return mass;
}

}  // namespace

std::vector<float> probe_margins(Team& team, Workspace& workspace, const Shape& shape, const AttentionParams& params,
                                 const Probes& probes, const KvView& kv, const LayerIndex& index, const Options& options) {
  const auto heads = static_cast<std::size_t>(shape.kv_heads);
  if (probes.count == 0 || options.mass >= 1) return std::vector<float>(heads, 1.0f);
  constexpr int kSteps = std::size(kMargins);
  std::vector<int> reached(heads * kSteps, 0);  // [kv_heads, margins]
  const auto words = static_cast<std::size_t>((kv.tokens + 63) / 64);
  std::vector<std::uint64_t> bits(heads * words);
  std::vector<float> weights(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(kv.tokens));
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.v_head_dim));
  Options probing = options;
  probing.tail_clusters = 0;
  probing.min_context = 0;
  LayerIndex with_margin = index;
  for (int p = 0; p < probes.count; ++p) {
    const Query query{probes.q + static_cast<std::ptrdiff_t>(p) * shape.q_heads * shape.head_dim, shape, params};
    true_weights(team, query, kv, weights);
    for (int m = 0; m < kSteps; ++m) {
      with_margin.margin.assign(heads, kMargins[m]);
      StepReport report;
      report.token_bits = bits;
      decode_step(team, workspace, query, kv, &with_margin, probing, out.data(), nullptr, &report);
      for (int head = 0; head < shape.q_heads; ++head) {
        const auto h = static_cast<std::size_t>(head / shape.group());
        const double mass =
            mass_of(weights.data() + static_cast<std::ptrdiff_t>(head) * kv.tokens, bits.data() + h * words, kv.tokens);
        if (mass >= options.mass - 1e-6) ++reached[h * kSteps + static_cast<std::size_t>(m)];
      }
    }
  }
  std::vector<float> margins(heads, -1.0f);
  for (std::size_t h = 0; h < heads; ++h) {
    for (std::size_t m = 0; m < kSteps; ++m) {
      if (reached[h * kSteps + m] < kWanted * probes.count * shape.group()) continue;
      margins[h] = kMargins[m];
      break;
    }
  }
  return margins;
}

}  // namespace tactic
