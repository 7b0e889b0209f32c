// Softmax over all tokens, in double sums.
#include "true_mass.h"

#include <algorithm>
#include <cmath>

namespace tactic::llama {

std::vector<float> true_masses(const float* q, const Shape& shape, const AttentionParams& params, const KvView& kv,
                               std::span<const std::uint64_t> bits) {
  const auto tokens = static_cast<std::size_t>(kv.tokens);
  const std::size_t words = (tokens + 63) / 64;
  const auto group = static_cast<std::size_t>(shape.group());
  const bool by_query_head = bits.size() == words * static_cast<std::size_t>(shape.q_heads);
  std::vector<float> logits(group * tokens), mass;
  for (std::size_t head = 0; head < static_cast<std::size_t>(shape.kv_heads); ++head) {
    score_list({q, shape, params}, kv, static_cast<int>(head), {nullptr, 0, kv.tokens}, logits.data(), kv.tokens);
    for (std::size_t g = 0; g < group; ++g) {
      const std::uint64_t* attended = bits.data() + (by_query_head ? head * group + g : head) * words;
      const std::span<const float> row(logits.data() + g * tokens, tokens);
      const double most = *std::max_element(row.begin(), row.end());
      double all = 0, taken = 0;
      for (std::size_t t = 0; t < tokens; ++t) {
        const double weight = std::exp(row[t] - most);
        all += weight;
        if ((attended[t / 64] >> (t % 64) & 1) != 0) taken += weight;
      }
      mass.push_back(static_cast<float>(taken / all));
    }
  }
  return mass;
}

}  // namespace tactic::llama
