// Partial results of disjoint token sets: their sum, and the division at the end. Cold next to the rows they stand for
// (heads * v_head_dim floats per piece), so plain code.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/attend.h"

namespace tactic {

void merge(const Partial& into, const Partial& part, int heads, int v_head_dim) {
  for (int h = 0; h < heads; ++h) {
    if (part.sum[h] == 0) continue;
    // A NaN maximum or sum on either side makes both factors or the sum NaN, and so the head.
    const float maximum = into.maximum[h] >= part.maximum[h] ? into.maximum[h] : part.maximum[h];
    const float keep = into.sum[h] == 0 ? 0.0f : std::exp(into.maximum[h] - maximum);
    const float add = std::exp(part.maximum[h] - maximum);
    float* o = into.output + static_cast<std::ptrdiff_t>(h) * v_head_dim;
    const float* p = part.output + static_cast<std::ptrdiff_t>(h) * v_head_dim;
    for (int i = 0; i < v_head_dim; ++i) o[i] = o[i] * keep + p[i] * add;
    into.sum[h] = into.sum[h] * keep + part.sum[h] * add;
    into.maximum[h] = maximum;
  }
}

void normalise(const Partial& part, int heads, int v_head_dim, const float* sink_logits, float* out, float* lse) {
  for (int h = 0; h < heads; ++h) {
    float* o = out + static_cast<std::ptrdiff_t>(h) * v_head_dim;
    if (part.sum[h] == 0) {
      std::fill(o, o + v_head_dim, 0.0f);
      if (lse != nullptr) lse[h] = -std::numeric_limits<float>::infinity();
      continue;
    }
    const float sink = sink_logits != nullptr ? sink_logits[h] : -std::numeric_limits<float>::infinity();
    const float maximum = sink > part.maximum[h] ? sink : part.maximum[h];  // a sink far above must not overflow
    const float rescale = std::exp(part.maximum[h] - maximum);
    const float sum = part.sum[h] * rescale + std::exp(sink - maximum);
    const float* p = part.output + static_cast<std::ptrdiff_t>(h) * v_head_dim;
    for (int i = 0; i < v_head_dim; ++i) o[i] = p[i] * rescale / sum;
    if (lse != nullptr) lse[h] = maximum + std::log(sum);
  }
}

}  // namespace tactic
