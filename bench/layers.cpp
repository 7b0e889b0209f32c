// Synthetic layers: keys, queries, clusters.
#include "bench/layers.h"

#include <array>

#include "core/half.h"

namespace tactic::bench {
namespace {

// 64 random bits (splitmix64): millions of keys are drawn.
struct Random {
  std::uint64_t state;
  std::uint64_t bits() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Near normal, deviation 1: the sum of four 16-bit uniforms.
  float normal() {
    const std::uint64_t b = bits();
    const auto sum = static_cast<float>((b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48));
    return (sum - 2 * 65535.0f) * (1.7320508f / 65536);
  }
};

}  // namespace

Layers::Layers(const Case& c, Team& team)
    : case_(c), pages_(static_cast<std::size_t>(layer_bytes()) * static_cast<std::size_t>(c.layers), false) {
  fill();
  build(team);
}

KvView Layers::view(int layer) const {
  const std::int64_t row = 2 * case_.shape.head_dim;
  Rows rows{pages_.data() + static_cast<std::int64_t>(layer_bytes()) * layer,
            DType::f16,
            case_.shape.head_dim,
            row * case_.shape.kv_heads,
            row,
            0};
  KvView kv{rows, rows, case_.shape.kv_heads, case_.tokens, nullptr, 1};
  kv.v.data += static_cast<std::int64_t>(layer_bytes()) / 2;
  return kv;
}
Query Layers::query(int layer, int step) const {
  const std::size_t size = static_cast<std::size_t>(case_.shape.q_heads * case_.shape.head_dim);
  return {q_.data() + (static_cast<std::size_t>(layer) * kSteps + static_cast<std::size_t>(step)) * size,
          case_.shape,
          {1 / std::sqrt(static_cast<float>(case_.shape.head_dim)), 0, nullptr}};
}
std::byte* Layers::at(int layer, bool v, std::int64_t token, int head) {
  const std::int64_t row = 2 * case_.shape.head_dim;
  return pages_.data() + static_cast<std::int64_t>(layer_bytes()) * layer +
         (v ? static_cast<std::int64_t>(layer_bytes()) / 2 : 0) + (token * case_.shape.kv_heads + head) * row;
}

void Layers::fill() {
  Random random{42};
  const Shape& s = case_.shape;
  const auto d = static_cast<std::size_t>(s.head_dim);
  const auto topics = static_cast<std::size_t>(case_.tokens / 64);
  std::vector<float> centers(topics * d);
  q_.resize(static_cast<std::size_t>(case_.layers) * kSteps * static_cast<std::size_t>(s.q_heads) * d);
  for (int layer = 0; layer < case_.layers; ++layer) {
    for (int h = 0; h < s.kv_heads; ++h) {
      for (float& x : centers) x = random.normal();
      std::size_t topic = 0;
      for (std::int64_t t = 0; t < case_.tokens; ++t) {
        if (t % 8 == 0) topic = random.bits() % topics;
        std::byte* k = at(layer, false, t, h);
        std::byte* v = at(layer, true, t, h);
        for (std::size_t i = 0; i < d; ++i) {
          store_element(k, DType::f16, i, 0.8f * centers[topic * d + i] + 0.6f * random.normal());
          store_element(v, DType::f16, i, static_cast<float>(static_cast<int>(i * 7 + topic) % 13) * 0.1f - 0.6f);
        }
      }
      for (int step = 0; step < kSteps; ++step) {
        std::vector<float> shared(d);
        for (int look = 0; look < 3; ++look) {
          const std::size_t at_topic = random.bits() % topics;
          for (std::size_t i = 0; i < d; ++i) shared[i] += 0.4f * centers[at_topic * d + i];
        }
        for (std::size_t i = 0; i < d; ++i) shared[i] += 0.8f * random.normal();
        float* q = q_.data() + ((static_cast<std::size_t>(layer) * kSteps + static_cast<std::size_t>(step)) *
                                    static_cast<std::size_t>(s.q_heads) +
                                static_cast<std::size_t>(h * s.group())) *
                                   d;
        for (int g = 0; g < s.group(); ++g) {
          for (std::size_t i = 0; i < d; ++i) *q++ = shared[i] + 0.4f * random.normal();
        }
      }
    }
  }
}

// Segments of 8192 tokens: k-means is quadratic in them, and a layer's step only sees their sum.
void Layers::build(Team& team) {
  const Shape& s = case_.shape;
  for (int layer = 0; layer < case_.layers; ++layer) {
    std::vector<MetricSpace> metrics;
    for (int h = 0; h < s.kv_heads; ++h) {
      QueryMoment moment(s.head_dim);
      const Query q = query(layer, 0);
      moment.add(q.q + h * s.group() * s.head_dim, kSteps, s.group(), static_cast<std::int64_t>(s.q_heads) * s.head_dim,
                 s.head_dim);
      metrics.push_back(make_metric(Metric::query, moment, {Rotary::Layout::none, {}}, 0.1f));
    }
    LayerIndex index;
    const std::int64_t last = case_.tokens - 64;
    for (std::int64_t first = 4; first < last;) {
      const std::int64_t end = last - first < 12288 ? last : first + 8192;
      index.segments.push_back(build_segment(team, view(layer), first, end, metrics, {32, 3, true, 1}));
      first = end;
    }
    for (int h = 0; h < s.kv_heads; ++h) index.tables.push_back(make_table(index.segments, h));
    indexes_.push_back(std::move(index));
  }
}

}  // namespace tactic::bench
