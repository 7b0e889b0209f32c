// Ranking and pooling of scores, and how Ada-SnapKV divides a layer's tokens.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "baselines/rules.h"

namespace tactic {
namespace {

// Sorts like (score descending, place ascending) and, unlike a comparison of floats, totally: NaN comes first.
std::uint64_t rank_key(float score, std::size_t place) {
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 and 0 are equal
  const std::uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (std::uint64_t{~rising} << 32) | place;
}

}  // namespace

std::vector<std::int32_t> largest(std::span<const float> scores, std::int64_t count) {
  count = std::clamp<std::int64_t>(count, 0, static_cast<std::int64_t>(scores.size()));
  std::vector<std::uint64_t> keys(scores.size());
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = rank_key(scores[i], i);
  const auto cut = keys.begin() + static_cast<std::ptrdiff_t>(count);
  if (cut != keys.end()) std::nth_element(keys.begin(), cut, keys.end());
  std::vector<std::int32_t> places;
  places.reserve(static_cast<std::size_t>(count));
  for (auto key = keys.begin(); key != cut; ++key) places.push_back(static_cast<std::int32_t>(*key & 0xffffffffu));
  std::sort(places.begin(), places.end());
  return places;
}

std::vector<float> pooled(std::span<const float> scores, int kernel, Pool pool) {
  const auto count = static_cast<std::int64_t>(scores.size());
  const std::int64_t reach = kernel / 2;
  std::vector<float> out(scores.size());
  for (std::int64_t i = 0; i < count; ++i) {
    const auto first = scores.begin() + std::max<std::int64_t>(0, i - reach);
    const auto last = scores.begin() + std::min(count, i + reach + 1);
    float value = 0;
    if (pool == Pool::maximum) {
      value = *std::max_element(first, last);
    } else {
      double sum = 0;
      for (auto s = first; s != last; ++s) sum += static_cast<double>(*s);
      value = static_cast<float>(sum / kernel);
    }
    out[static_cast<std::size_t>(i)] = value;
  }
  return out;
}

std::vector<std::int64_t> ada_budgets(std::span<const float> scores, int heads, std::int64_t chosen, float share, AdaRule rule) {
  const auto count = static_cast<std::int64_t>(scores.size()) / heads;
  std::vector<std::int64_t> of_head(static_cast<std::size_t>(heads), 0);
  for (const std::int32_t place : largest(scores, heads * chosen)) ++of_head[static_cast<std::size_t>(place / count)];
  // 0.2f is a little more than 0.2: without the correction floor() and ties of round() would depend on it.
  const double a = std::round(static_cast<double>(share) * 1e6) / 1e6;
  const double adaptive = rule == AdaRule::code ? 1 - a : a;
  const double floor_share = std::floor((1 - adaptive) * static_cast<double>(chosen) + 1e-9);
  std::vector<std::int64_t> budgets;
  for (const std::int64_t c : of_head) {
    // nearbyint: halves go to even, as Python's and torch's round().
    const double tokens = std::nearbyint(adaptive * static_cast<double>(c) + floor_share);
    budgets.push_back(std::min(count, static_cast<std::int64_t>(tokens)));
  }
  return budgets;
}

std::vector<std::vector<std::int32_t>> ada_safeguard(std::span<const float> scores, int heads, std::int64_t capacity, int window,
                                                     float share) {
  const auto count = scores.size() / static_cast<std::size_t>(heads);
  const double a = std::round(static_cast<double>(share) * 1e6) / 1e6;
  auto safe = static_cast<std::int64_t>(std::floor(a * static_cast<double>(capacity) + 1e-9));
  if (a > 0) safe = std::max<std::int64_t>(1, safe);
  std::vector<float> raised(scores.begin(), scores.end());
  for (int head = 0; head < heads && safe > window; ++head) {  // the window is every head's best
    const auto own = scores.subspan(static_cast<std::size_t>(head) * count, count);
    for (const std::int32_t place : largest(own, safe - window))
      raised[static_cast<std::size_t>(head) * count + static_cast<std::size_t>(place)] = std::numeric_limits<float>::infinity();
  }
  std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(heads));
  for (const std::int32_t place : largest(raised, heads * (capacity - window))) {
    const auto at = static_cast<std::size_t>(place);
    kept[at / count].push_back(static_cast<std::int32_t>(at % count));
  }
  return kept;
}

}  // namespace tactic
