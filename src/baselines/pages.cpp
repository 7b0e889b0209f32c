// Quest: pages by an upper bound of their keys' logits.
#include <algorithm>
#include <limits>

#include "baselines/rules.h"
#include "core/half.h"

namespace tactic {

// Elementwise bounds of the keys of every page that has new tokens.
void LayerBaseline::update_pages(Team& team, const KvView& kv) {
  const std::int64_t page = options_.page_tokens;
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t page_size = static_cast<std::size_t>(shape_.kv_heads) * dim;
  const std::int64_t first = bounded_ / page, last = (kv.tokens + page - 1) / page;
  low_.resize(static_cast<std::size_t>(last) * page_size);
  high_.resize(low_.size());
  team.run([&](Worker& worker) {
    const auto [begin, end] = worker.share(last - first);
    for (std::int64_t p = first + begin; p < first + end; ++p) {
      float* low = low_.data() + static_cast<std::size_t>(p) * page_size;
      float* high = high_.data() + static_cast<std::size_t>(p) * page_size;
      std::fill_n(low, page_size, std::numeric_limits<float>::infinity());
      std::fill_n(high, page_size, -std::numeric_limits<float>::infinity());
      for (std::int64_t t = p * page; t < std::min(kv.tokens, (p + 1) * page); ++t) {
        for (int h = 0; h < shape_.kv_heads; ++h) {
          const std::byte* key = row(kv, kv.k, t, h);
          for (std::size_t i = 0; i < dim; ++i) {
            const float k = load_element(key, kv.k.type, i);
            const std::size_t at = static_cast<std::size_t>(h) * dim + i;
            low[at] = std::min(low[at], k);
            high[at] = std::max(high[at], k);
          }
        }
      }
    }
  });
  bounded_ = kv.tokens;
}

void LayerBaseline::select_pages(Team& team, const Query& query, const KvView& kv, Selection& out) {
  update_pages(team, kv);
  const std::int64_t page = options_.page_tokens;
  const std::int64_t pages = (prompt_ + page - 1) / page;  // that hold prompt tokens
  const std::int64_t current = (kv.tokens - 1) / page;
  const bool one = sharing_of(options_, budget_) == Sharing::one;
  const int choosers = one ? shape_.kv_heads : shape_.q_heads;
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t page_size = static_cast<std::size_t>(shape_.kv_heads) * dim;
  chosen_.resize(static_cast<std::size_t>(choosers));
  team.run([&](Worker& worker) {
    std::vector<float> scores(static_cast<std::size_t>(pages));
    for (int c = worker.rank(); c < choosers; c += worker.size()) {
      const int heads = one ? shape_.group() : 1;
      const int first = one ? c * heads : c;
      const auto kv_head = static_cast<std::size_t>(first / shape_.group());
      std::fill(scores.begin(), scores.end(), 0.0f);
      for (int g = 0; g < heads; ++g) {
        const float* q = query.q + static_cast<std::size_t>(first + g) * dim;
        for (std::size_t p = 0; p < scores.size(); ++p)
          scores[p] +=
              page_bound(q, low_.data() + p * page_size + kv_head * dim, high_.data() + p * page_size + kv_head * dim, dim);
      }
      const std::int64_t sink_pages = (options_.forced_sinks + page - 1) / page;
      for (std::int64_t p = 0; p < std::min(pages, sink_pages); ++p)
        scores[static_cast<std::size_t>(p)] = std::numeric_limits<float>::infinity();
      if (current < pages) scores[static_cast<std::size_t>(current)] = std::numeric_limits<float>::infinity();
      auto& tokens = chosen_[static_cast<std::size_t>(c)];
      tokens.clear();
      const std::int64_t budget = budgets_[static_cast<std::size_t>(c)];
      const std::int64_t wanted = budget >= prompt_ ? pages : std::max<std::int64_t>(3, budget / page);
      for (const std::int32_t p : largest(scores, wanted)) {
        for (std::int64_t t = p * page; t < std::min(prompt_, (p + 1) * page); ++t)
          tokens.push_back(static_cast<std::int32_t>(t));
      }
    }
  });
  const auto k_row = static_cast<double>(static_cast<std::size_t>(kv.k.dim) * size_of(kv.k.type));
  out.metadata_bytes = 2 * k_row * static_cast<double>(pages) * shape_.kv_heads;
}

float page_bound(const float* q, const float* low, const float* high, std::size_t dim) {
  float sum = 0;
  for (std::size_t i = 0; i < dim; ++i) sum += std::max(q[i] * low[i], q[i] * high[i]);
  return sum;
}

}  // namespace tactic
