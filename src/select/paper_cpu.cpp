// Algorithm 1 of the paper, fast: radix sort of the clusters, one read of the sampled K rows for the whole group, and the
// cumulative sum of a / x + b in closed form.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "select/paper_fit.h"
#include "select/select.h"

namespace tactic {
namespace {

// order [count]: columns in descending order of logits, equal ones ascending. pairs: room for 2 * count words.
void sort_descending(const float* logits, int count, std::uint64_t* pairs, std::int32_t* order) {
  constexpr int kBits = 8;
  constexpr int kPasses = 32 / kBits;
  std::uint32_t places[kPasses][1 << kBits] = {};
  std::uint64_t* from = pairs;
  std::uint64_t* to = pairs + count;
  for (int c = 0; c < count; ++c) {
    const auto bits = std::bit_cast<std::uint32_t>(logits[c] + 0.0f);            // -0 equals 0
    const std::uint32_t key = (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);  // ascending keys are descending floats
    for (int p = 0; p < kPasses; ++p) ++places[p][(key >> (p * kBits)) & 0xffu];
    from[c] = static_cast<std::uint64_t>(key) << 32 | static_cast<std::uint32_t>(c);
  }
  for (int p = 0; p < kPasses; ++p) {
    std::uint32_t next = 0;
    for (auto& place : places[p]) next += std::exchange(place, next);
    for (int i = 0; i < count; ++i) to[places[p][(from[i] >> (32 + p * kBits)) & 0xffu]++] = from[i];
    std::swap(from, to);
  }
  for (int i = 0; i < count; ++i) order[i] = static_cast<std::int32_t>(from[i] & 0xffffffffu);
}

// The order of one head: clusters, and how many tokens lie before each.
struct Order {
  const HeadTable* table;
  const std::int32_t* cluster;  // [count]
  const std::int32_t* start;    // [count + 1]

  // Calls use(token) for places [begin, end).
  template <class Use>
  void walk(std::int64_t begin, std::int64_t end, Use use) const {
    if (begin >= end) return;
    std::int64_t i = std::upper_bound(start, start + table->count + 1, begin) - start - 1;
    for (std::int64_t place = begin; place < end; ++i) {
      const auto& tokens = table->tokens[static_cast<std::size_t>(cluster[i])];
      const std::int64_t last = std::min<std::int64_t>(end, start[i + 1]);
      for (; place < last; ++place) use(tokens[static_cast<std::size_t>(place - start[i])]);
    }
  }
};

// Sampled tokens, listed; place_of finds a token's place in the list.
struct Sample {
  const std::uint64_t* bits;
  const std::int32_t* rank;  // [words] listed tokens before the word
  std::int64_t count;

  std::int64_t place_of(std::int32_t token) const {
    const std::uint64_t below = bits[token >> 6] & ((std::uint64_t{1} << (token & 63)) - 1);
    return rank[token >> 6] + std::popcount(below);
  }
};

// Harmonic number H(x), x >= 16, less Euler's constant: relative error below 1e-14.
double harmonic(double x) {
  const double r = 1 / (x * x);
  return std::log(x) + 0.5 / x - r * (1.0 / 12 - r * (1.0 / 120 - r * (1.0 / 252 - r / 240)));
}

// sum over i = head + 1 .. k of max(a / i + b, 0), in closed form; head >= 16.
class CurveSum {
 public:
  CurveSum(Fit fit, std::int64_t head, std::int64_t n) : fit_(fit), low_(head + 1), high_(n) {
    const double zero = -fit.a / fit.b;  // where the curve crosses 0
    if (fit.a <= 0 && fit.b <= 0) high_ = head;
    if (fit.a > 0 && fit.b < 0 && zero <= static_cast<double>(n)) high_ = static_cast<std::int64_t>(std::ceil(zero)) - 1;
    if (fit.a < 0 && fit.b > 0 && zero >= static_cast<double>(low_)) {
      low_ = zero < static_cast<double>(n) ? static_cast<std::int64_t>(std::floor(zero)) + 1 : n + 1;
    }
    before_ = harmonic(static_cast<double>(std::max<std::int64_t>(low_ - 1, 16)));
  }
  double operator()(std::int64_t k) const {
    const std::int64_t last = std::min(k, high_);
    if (last < low_) return 0;
    return fit_.a * (harmonic(static_cast<double>(last)) - before_) + fit_.b * static_cast<double>(last - low_ + 1);
  }

 private:
  Fit fit_;
  std::int64_t low_, high_;
  double before_;
};

struct Budget {
  std::int64_t k;
  float estimated;
};

// weight(token): its exact mass.
template <class Weight>
Budget find_budget(const Order& order, const FitPlaces& p, std::int64_t n, double fixed, double mass, Weight weight) {
  const auto sum = [&](std::int64_t begin, std::int64_t end) {
    double total = 0;
    order.walk(begin, end, [&](std::int32_t token) { total += weight(token); });
    return total;
  };
  double head = fixed;
  order.walk(0, p.head, [&](std::int32_t token) { head += weight(token); });
  Fit fit{0, 0};
  if (p.head < n) {
    fit = fit_curve(
        static_cast<double>(p.first), sum(p.first_begin, p.first_end) / static_cast<double>(p.first_end - p.first_begin),
        static_cast<double>(p.second), sum(p.second_begin, p.second_end) / static_cast<double>(p.second_end - p.second_begin));
  }
  const CurveSum curve(fit, p.head, n);
  const double total = head + curve(n);
  if (!std::isfinite(total)) return {n, 1};
  const double wanted = mass * total;
  if (!(total > 0) || fixed >= wanted) return {0, total > 0 ? static_cast<float>(fixed / total) : 1};
  if (head >= wanted) {
    double reached = fixed;
    std::int64_t k = 0;
    order.walk(0, p.head, [&](std::int32_t token) {
      if (reached >= wanted) return;
      reached += weight(token);
      ++k;
    });
    return {k, static_cast<float>(reached / total)};
  }
  std::int64_t low = p.head;  // reaches too little
  std::int64_t high = n;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (head + curve(middle) >= wanted ? high : low) = middle;
  }
  return {high, static_cast<float>((head + curve(high)) / total)};
}

// rank [words + 1] and ids from the bits, which stay.
Sample list_sample(const std::uint64_t* bits, std::int64_t words, std::int32_t* rank, std::int32_t* ids) {
  std::int32_t n = 0;
  for (std::int64_t w = 0; w < words; ++w) {
    rank[w] = n;
    for (std::uint64_t word = bits[w]; word != 0; word &= word - 1)
      ids[n++] = static_cast<std::int32_t>(w * 64 + std::countr_zero(word));
  }
  return {bits, rank, n};
}

}  // namespace

void choose_paper(const Query& query, const KvView& kv, int kv_head, const HeadTable& table, const float* logits,
                  const float* fixed, const float* reference, const Options& options, std::uint64_t* bitmap, std::int64_t* budget,
                  float* estimated, PaperReport* report, SelectScratch& scratch) {
  const int group = query.shape.group();
  const std::int64_t n = table.token_count;
  if (report != nullptr) report->sampled = 0;
  if (n == 0) {
    std::fill(budget, budget + group, 0);
    std::fill(estimated, estimated + group, 1.0f);
    return;
  }
  const std::int64_t words = (kv.tokens + 63) / 64;
  const std::int64_t count = table.count;
  const FitPlaces p = fit_places(n, options);
  const std::int64_t most = std::min(n, group * (p.head + p.first_end - p.first_begin + p.second_end - p.second_begin));
  scratch.words.resize(static_cast<std::size_t>(words + 2 * count));
  scratch.ints.resize(static_cast<std::size_t>(group * (2 * count + 1) + words + most));
  std::uint64_t* sample_bits = scratch.words.data();
  std::fill(sample_bits, sample_bits + words, 0);
  std::int32_t* rank = scratch.ints.data() + group * (2 * count + 1);
  std::int32_t* ids = rank + words;

  Order orders[kMaxGroup];
  for (int g = 0; g < group; ++g) {
    std::int32_t* cluster = scratch.ints.data() + g * (2 * count + 1);
    std::int32_t* start = cluster + count;
    sort_descending(logits + static_cast<std::int64_t>(g) * table.stride, table.count, sample_bits + words, cluster);
    start[0] = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      start[i + 1] = start[i] + static_cast<std::int32_t>(table.tokens[static_cast<std::size_t>(cluster[i])].size());
    }
    orders[g] = {&table, cluster, start};
    const auto mark = [&](std::int32_t token) { sample_bits[token >> 6] |= std::uint64_t{1} << (token & 63); };
    orders[g].walk(0, p.head, mark);
    if (p.head == n) continue;
    orders[g].walk(p.first_begin, p.first_end, mark);
    orders[g].walk(p.second_begin, p.second_end, mark);
  }
  const Sample sample = list_sample(sample_bits, words, rank, ids);
  scratch.floats.resize(static_cast<std::size_t>(group * sample.count));
  score_list(query, kv, kv_head, {ids, 0, sample.count}, scratch.floats.data(), sample.count);
  for (int g = 0; g < group; ++g) {
    const float* score = scratch.floats.data() + g * sample.count;
    const auto weight = [&](std::int32_t token) {
      return std::exp(static_cast<double>(score[sample.place_of(token)]) - static_cast<double>(reference[g]));
    };
    const Budget found = find_budget(orders[g], p, n, static_cast<double>(fixed[g]), static_cast<double>(options.mass), weight);
    orders[g].walk(0, found.k, [&](std::int32_t token) { bitmap[token >> 6] |= std::uint64_t{1} << (token & 63); });
    budget[g] = found.k;
    estimated[g] = found.estimated;
  }
  if (report != nullptr) report->sampled = sample.count;
}

}  // namespace tactic
