// The arithmetic of Algorithm 1 (paper appendix B): sizes of its samples, the fit y = a / x + b, and the budget k.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/options.h"

namespace tactic {

// Places in the order of n tokens, from 0: exact weights [0, head), windows [first_begin, first_end), [second_begin, second_end).
struct FitPlaces {
  std::int64_t head, first, first_begin, first_end, second, second_begin, second_end;
};

// The options that the places follow from.
struct FitShares {
  float head, window, first, second;
};

constexpr FitPlaces fit_places(std::int64_t n, const FitShares& shares) {
  constexpr std::int64_t kLeast = 16;  // tokens of a sample: means of fewer say little
  const auto share = [&](float part) {
    return static_cast<std::int64_t>((static_cast<double>(part) + 1e-8) * static_cast<double>(n));
  };  // 1e-8: 0.02f lies below 0.02
  FitPlaces p{};
  p.head = std::min(n, std::max(share(shares.head), kLeast));
  const std::int64_t half = std::max(share(shares.window), kLeast) / 2;
  p.first = std::max<std::int64_t>(share(shares.first), 1);
  p.second = std::max(share(shares.second), p.first + 1);
  p.first_begin = std::clamp<std::int64_t>(p.first - half, 0, n - 1);
  p.first_end = std::clamp(p.first + half, p.first_begin + 1, n);
  p.second_begin = std::clamp<std::int64_t>(p.second - half, 0, n - 1);
  p.second_end = std::clamp(p.second + half, p.second_begin + 1, n);
  return p;
}

inline FitPlaces fit_places(std::int64_t n, const Options& options) {
  return fit_places(n, FitShares{options.fit_head, options.fit_window, options.fit_first, options.fit_second});
}

struct Fit {
  double a, b;
};

// Through the means y1 and y2 of the windows around places x1 and x2.
constexpr Fit fit_curve(double x1, double y1, double x2, double y2) {
  const double a = (y1 - y2) / (1 / x1 - 1 / x2);
  return {a, y1 - a / x1};
}

}  // namespace tactic
