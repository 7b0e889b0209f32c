// Choice by expected loss in scalar code and double sums.
#include <algorithm>
#include <cmath>

#include "select/loss.h"

namespace tactic::reference {

void representation_ripple(const HeadTable& table, int group, const float* logits, const float* h, float* ripple, float softcap) {
  const std::size_t parts = table.parts.size();
  for (int g = 0; g < group; ++g) {
    for (int c = 0; c < table.stride; ++c) {
      const std::int64_t at = static_cast<std::int64_t>(g) * table.stride + c;
      ripple[at] = c < table.count ? 1.0f : 0.0f;
      if (c >= table.count || h == nullptr) continue;
      const auto part = static_cast<std::size_t>(table.part_of[static_cast<std::size_t>(c)]);
      double variance = 2.0 * h[static_cast<std::size_t>(g) * parts + part] * table.spread[static_cast<std::size_t>(c)];
      if (softcap > 0) {
        const double slope = 1 - std::pow(static_cast<double>(logits[at]) / softcap, 2);
        variance *= slope * slope;
      }
      const double scatter = std::expm1(std::min(variance, 5.0)) / table.size[static_cast<std::size_t>(c)];
      ripple[at] = static_cast<float>(std::min(1.0, scatter + 0.01));
    }
  }
}

int choose_by_loss(const HeadTable& table, int group, const float* mass, const float* ripple, const float* fixed,
                   float loss_per_row, std::uint8_t* chosen, std::int32_t* list, float* covered) {
  double total[kMaxGroup];
  bool sound = true;
  for (int g = 0; g < group; ++g) {
    total[g] = fixed[g];
    for (int c = 0; c < table.count; ++c) total[g] += mass[static_cast<std::int64_t>(g) * table.stride + c];
    sound = sound && std::isfinite(total[g]) && total[g] > 0;
  }
  int added = 0;
  for (int c = 0; c < table.count; ++c) {
    double loss = 0;
    for (int g = 0; g < group; ++g) {
      const std::int64_t at = static_cast<std::int64_t>(g) * table.stride + c;
      loss += std::pow(mass[at] / total[g], 2) * ripple[at];
    }
    if (chosen[c] != 0 || (sound && !(loss > static_cast<double>(loss_per_row) * table.size[static_cast<std::size_t>(c)])))
      continue;
    chosen[c] = 1;
    list[added++] = c;
  }
  for (int g = 0; g < group; ++g) {
    double share = fixed[g];
    for (int c = 0; c < table.count; ++c) {
      if (chosen[c] != 0) share += mass[static_cast<std::int64_t>(g) * table.stride + c];
    }
    covered[g] = sound ? static_cast<float>(share / total[g]) : 1.0f;
  }
  return added;
}

}  // namespace tactic::reference
