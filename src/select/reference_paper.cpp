// Algorithm 1 of the paper as it is written: unpack, fit, cumulative sum, union. Double precision.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "select/paper_fit.h"
#include "select/select.h"

namespace tactic::reference {
namespace {

std::vector<std::int32_t> tokens_in_order(const HeadTable& table, const float* logits) {
  std::vector<int> order(static_cast<std::size_t>(table.count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<std::int32_t> tokens;
  for (const int c : order) {
    const auto& of = table.tokens[static_cast<std::size_t>(c)];
    tokens.insert(tokens.end(), of.begin(), of.end());
  }
  return tokens;
}

}  // namespace

void choose_paper(const Query& query, const KvView& kv, int kv_head, const HeadTable& table, const float* logits,
                  const float* fixed, const float* reference, const Options& options, std::uint64_t* bitmap, std::int64_t* budget,
                  float* estimated, PaperReport* report) {
  const int group = query.shape.group();
  const std::int64_t n = table.token_count;
  std::set<std::int32_t> sampled;
  for (int g = 0; g < group; ++g) {
    const std::vector<std::int32_t> tokens = tokens_in_order(table, logits + static_cast<std::int64_t>(g) * table.stride);
    const auto weight = [&](std::int64_t place) {  // exp(q . k), relative
      const std::int32_t id = tokens[static_cast<std::size_t>(place)];
      sampled.insert(id);
      std::vector<float> score(static_cast<std::size_t>(group));
      reference::score_list(query, kv, kv_head, {&id, 0, 1}, score.data(), 1);
      return std::exp(static_cast<double>(score[static_cast<std::size_t>(g)]) - static_cast<double>(reference[g]));
    };
    const auto mean = [&](std::int64_t begin, std::int64_t end) {
      double sum = 0;
      for (std::int64_t i = begin; i < end; ++i) sum += weight(i);
      return sum / static_cast<double>(end - begin);
    };
    std::vector<double> cumulative(static_cast<std::size_t>(n));
    const FitPlaces p = n > 0 ? fit_places(n, options) : FitPlaces{};
    Fit fit{};
    if (p.head < n) {
      fit = fit_curve(static_cast<double>(p.first), mean(p.first_begin, p.first_end), static_cast<double>(p.second),
                      mean(p.second_begin, p.second_end));
    }
    double sum = static_cast<double>(fixed[g]);
    for (std::int64_t i = 0; i < n; ++i) {
      sum += i < p.head ? weight(i) : std::max(fit.a / static_cast<double>(i + 1) + fit.b, 0.0);
      cumulative[static_cast<std::size_t>(i)] = sum;
    }
    const double wanted = static_cast<double>(options.mass) * sum;
    std::int64_t k = 0;
    if (!std::isfinite(sum)) {
      k = n;
    } else if (static_cast<double>(fixed[g]) < wanted) {
      k = std::min(n, std::lower_bound(cumulative.begin(), cumulative.end(), wanted) - cumulative.begin() + 1);
    }
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int32_t t = tokens[static_cast<std::size_t>(i)];
      bitmap[t / 64] |= std::uint64_t{1} << (t % 64);
    }
    budget[g] = k;
    const double covered = k > 0 ? cumulative[static_cast<std::size_t>(k - 1)] : static_cast<double>(fixed[g]);
    estimated[g] = sum > 0 && std::isfinite(sum) ? static_cast<float>(covered / sum) : 1.0f;
  }
  if (report != nullptr) report->sampled = static_cast<std::int64_t>(sampled.size());
}

}  // namespace tactic::reference
