// Rank, estimate, choice, correction and tail in scalar code with double sums and full sorts: the oracle.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/half.h"
#include "select/loss.h"
#include "select/select.h"

namespace tactic::reference {
namespace {

double softcapped(double logit, double cap) { return cap > 0 ? cap * std::tanh(logit / cap) : logit; }

const HeadTable::Part& part_of(const HeadTable& table, int c) {
  return table.parts[static_cast<std::size_t>(table.part_of[static_cast<std::size_t>(c)])];
}

double at(const float* matrix, const HeadTable& table, int g, int c) {
  return static_cast<double>(matrix[static_cast<std::int64_t>(g) * table.stride + c]);
}

double size_of(const HeadTable& table, int c) { return static_cast<double>(table.size[static_cast<std::size_t>(c)]); }

// h_g spread_c, with the softcap's slope.
double half_variance(const HeadTable& table, int g, int c, double logit, const float* h, float softcap) {
  if (h == nullptr) return 0;
  const std::size_t parts = table.parts.size();
  const std::size_t part = static_cast<std::size_t>(table.part_of[static_cast<std::size_t>(c)]);
  const double ratio = softcap > 0 ? logit / static_cast<double>(softcap) : 0;
  const double slope = 1 - ratio * ratio;
  return static_cast<double>(h[static_cast<std::size_t>(g) * parts + part]) *
         static_cast<double>(table.spread[static_cast<std::size_t>(c)]) * slope * slope;
}

}  // namespace

void score_centroids(const Query& query, int kv_head, const HeadTable& table, int first, int last, float* logits) {
  const int group = query.shape.group();
  const int dim = query.shape.head_dim;
  for (int g = 0; g < group; ++g) {
    const float* q = query.q + (static_cast<std::int64_t>(kv_head) * group + g) * dim;
    for (int c = first; c < last; ++c) {
      const HeadTable::Part& part = part_of(table, c);
      const HeadClusters& clusters = *part.clusters;
      const std::size_t own = static_cast<std::size_t>(c - part.first);
      double dot = 0;
      for (int i = 0; i < dim; ++i) {
        const std::size_t place = own * static_cast<std::size_t>(dim) + static_cast<std::size_t>(i);
        const double element = clusters.centroid16.empty()
                                   ? static_cast<double>(clusters.centroid_scale[own]) * clusters.centroid8[place]
                                   : static_cast<double>(half_to_float(clusters.centroid16[place]));
        dot += static_cast<double>(q[i]) * element;
      }
      const double logit = softcapped(dot * static_cast<double>(query.params.scale), static_cast<double>(query.params.softcap));
      logits[static_cast<std::int64_t>(g) * table.stride + c] = static_cast<float>(logit);
    }
  }
}

void half_variances(const Query& query, int kv_head, const HeadTable& table, float* h) {
  const int group = query.shape.group();
  const int dim = query.shape.head_dim;
  const std::size_t parts = table.parts.size();
  for (int g = 0; g < group; ++g) {
    const float* q = query.q + (static_cast<std::int64_t>(kv_head) * group + g) * dim;
    for (std::size_t p = 0; p < parts; ++p) {
      const HeadClusters& clusters = *table.parts[p].clusters;
      double form = 0;
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) {
          const auto s =
              clusters.covariance[static_cast<std::size_t>(i) * static_cast<std::size_t>(dim) + static_cast<std::size_t>(j)];
          form += static_cast<double>(q[i]) * static_cast<double>(q[j]) * static_cast<double>(s);
        }
      }
      const auto scale = static_cast<double>(query.params.scale);
      const auto t = static_cast<double>(clusters.mean_spread);
      h[static_cast<std::size_t>(g) * parts + p] = t > 0 ? static_cast<float>(scale * scale * form / (2 * t)) : 0.0f;
    }
  }
}

void estimate_masses(const HeadTable& table, int group, const float* logits, const float* h, const float* reference, float* mass,
                     float softcap) {
  for (int g = 0; g < group; ++g) {
    for (int c = 0; c < table.stride; ++c) {
      double e = 0;
      if (c < table.count) {
        const double logit = at(logits, table, g, c);
        const double x = logit + half_variance(table, g, c, logit, h, softcap) - static_cast<double>(reference[g]);
        e = size_of(table, c) * (std::isnan(x) ? x : std::exp(std::min(x, 60.0)));
      }
      mass[static_cast<std::int64_t>(g) * table.stride + c] = static_cast<float>(e);
    }
  }
}

void tail_factors(const HeadTable& table, int group, const float* mass, const float* exact, std::span<const std::int32_t> chosen,
                  float* factor) {
  for (int g = 0; g < group; ++g) {
    std::vector<std::int32_t> faintest(chosen.begin(), chosen.end());
    std::stable_sort(faintest.begin(), faintest.end(), [&](int a, int b) {
      return at(mass, table, g, a) / size_of(table, a) < at(mass, table, g, b) / size_of(table, b);
    });
    double all = 0;
    for (const int c : faintest) all += at(mass, table, g, c);
    double estimated = 0;
    double truth = 0;
    for (const int c : faintest) {
      if (estimated > 0 && estimated + at(mass, table, g, c) >= 0.1 * all) break;
      estimated += at(mass, table, g, c);
      truth += at(exact, table, g, c);
    }
    const bool valid = all > 0 && std::isfinite(all);
    factor[g] = valid ? static_cast<float>(std::clamp(truth / estimated, 1.0, 4.0)) : 1.0f;
  }
}

int choose_tail(const HeadTable& table, int group, const float* logits, const float* h, const float* reference,
                const float* total, const std::uint8_t* chosen, int limit, std::int32_t* list, float* weights, float softcap,
                float loss_per_row) {
  const double price = static_cast<double>(represented_price(loss_per_row));
  std::vector<double> weight(static_cast<std::size_t>(group) * static_cast<std::size_t>(table.count));
  std::vector<std::pair<double, std::int32_t>> heaviest;
  for (int c = 0; c < table.count; ++c) {
    double best = 0;
    double loss = 0;
    for (int g = 0; g < group; ++g) {
      const double logit = at(logits, table, g, c);
      const double s = std::sqrt(2 * std::max(half_variance(table, g, c, logit, h, softcap), 0.0));
      const double x = std::min(logit + s - static_cast<double>(reference[g]), 60.0);
      const double w = size_of(table, c) * std::exp(x) * (1 + std::exp(-2 * s)) / 2;  // log cosh s = s + log((1 + exp(-2 s)) / 2)
      weight[static_cast<std::size_t>(g) * static_cast<std::size_t>(table.count) + static_cast<std::size_t>(c)] = w;
      const double share = w / static_cast<double>(total[g]);
      best = std::max(best, share);
      loss += share * share;
    }
    if (price > 0 && !(loss > price)) continue;
    if (best > 0 && std::isfinite(best) && chosen[c] == 0) heaviest.emplace_back(-best, c);
  }
  std::sort(heaviest.begin(), heaviest.end());
  if (heaviest.size() > static_cast<std::size_t>(std::max(limit, 0)))
    heaviest.resize(static_cast<std::size_t>(std::max(limit, 0)));
  std::sort(heaviest.begin(), heaviest.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  for (std::size_t i = 0; i < heaviest.size(); ++i) {
    const auto c = static_cast<std::size_t>(heaviest[i].second);
    list[i] = heaviest[i].second;
    for (int g = 0; g < group; ++g) {
      weights[static_cast<std::size_t>(g) * static_cast<std::size_t>(limit) + i] =
          static_cast<float>(weight[static_cast<std::size_t>(g) * static_cast<std::size_t>(table.count) + c]);
    }
  }
  return static_cast<int>(heaviest.size());
}

void add_tail(const HeadTable& table, int group, int v_head_dim, std::span<const std::int32_t> list, const float* weights,
              int weight_stride, const Partial& out) {
  for (int g = 0; g < group; ++g) {
    for (int i = -1; i < v_head_dim; ++i) {  // -1: the sum
      double value = static_cast<double>(i < 0 ? out.sum[g] : out.output[static_cast<std::int64_t>(g) * v_head_dim + i]);
      for (std::size_t n = 0; n < list.size(); ++n) {
        const HeadTable::Part& part = part_of(table, list[n]);
        const auto c = static_cast<std::size_t>(list[n] - part.first);
        const auto w = static_cast<double>(weights[g * static_cast<std::int64_t>(weight_stride) + static_cast<std::int64_t>(n)]);
        const auto place = c * static_cast<std::size_t>(v_head_dim) + static_cast<std::size_t>(std::max(i, 0));
        value += i < 0 ? w : w * static_cast<double>(part.clusters->mean_v_scale[c]) * part.clusters->mean_v[place];
      }
      (i < 0 ? out.sum[g] : out.output[static_cast<std::int64_t>(g) * v_head_dim + i]) = static_cast<float>(value);
    }
  }
}

}  // namespace tactic::reference
