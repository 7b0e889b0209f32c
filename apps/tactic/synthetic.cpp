// Keys, values and queries that behave like captured ones, for shapes and lengths that no model at hand has.
//
// A key is  mean + sum_j sqrt(l_j) u_j z_j(t)  with orthonormal directions u, eigenvalues l_j ~ j^-slope, and each z_j the sum of
// a part that the token's kind decides (kinds are drawn with Zipf's law, as words are) and three first-order autoregressions.
// A query has a part common to all (which sees the sink), one of its head, and one along what the newest tokens have in common
// (which sees the recent ones); it is scaled to the wanted deviation of its logits.
#include "synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <span>

#include "core/half.h"

namespace tactic::program {
namespace {

constexpr int kKinds = 4096;
constexpr int kRecent = 64;
// How strongly queries lean to the newest tokens for each unit of recent_mass: found by trial at head dim 128; the run prints
// what it reaches.
constexpr double kTowardRecent = 1.8;
constexpr int kSinkTrials = 8;  // queries that the sink is fitted with

using Random = std::mt19937_64;

double normal(Random& random) {
  std::normal_distribution<double> distribution;
  return distribution(random);
}

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// [dim, dim] orthonormal rows, by Gram-Schmidt on normal ones.
std::vector<std::vector<double>> directions(int dim, Random& random) {
  std::vector<std::vector<double>> rows;
  while (static_cast<int>(rows.size()) < dim) {
    std::vector<double> row(static_cast<std::size_t>(dim));
    for (double& x : row) x = normal(random);
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& other : rows) {
        const double along = dot(row, other);
        for (std::size_t i = 0; i < row.size(); ++i) row[i] -= along * other[i];
      }
    }
    const double length = std::sqrt(dot(row, row));
    for (double& x : row) x /= length;
    rows.push_back(std::move(row));
  }
  return rows;
}

// z(t) of all directions: an AR(1) with correlation exp(-1/length) for each time scale, plus the kinds.
class Story {
 public:
  Story(int dim, const KeyStatistics& statistics, Random& random)
      : dim_(dim), statistics_(statistics), kinds_(std::size_t{kKinds} * static_cast<std::size_t>(dim)) {
    for (float& x : kinds_) x = static_cast<float>(normal(random));
    double sum = 0;
    for (int kind = 0; kind < kKinds; ++kind) cumulative_.push_back(sum += 1.0 / (kind + 3.0));
    for (auto& state : states_) {
      state.resize(static_cast<std::size_t>(dim));
      for (double& x : state) x = normal(random);
    }
  }

  void next(Random& random, std::span<double> z) {
    const double lengths[3] = {4, 30, 800};
    const double parts[3] = {statistics_.phrase_part, statistics_.passage_part, statistics_.topic_part};
    const auto at = std::lower_bound(cumulative_.begin(), cumulative_.end(),
                                     cumulative_.back() * std::generate_canonical<double, 53>(random));
    const auto kind = static_cast<std::size_t>(std::min<std::ptrdiff_t>(at - cumulative_.begin(), kKinds - 1));
    for (int i = 0; i < dim_; ++i) {
      const auto j = static_cast<std::size_t>(i);
      z[j] = std::sqrt(statistics_.kind_part) * static_cast<double>(kinds_[kind * static_cast<std::size_t>(dim_) + j]);
      for (std::size_t s = 0; s < 3; ++s) {
        const double keep = std::exp(-1 / lengths[s]);
        states_[s][j] = keep * states_[s][j] + std::sqrt(1 - keep * keep) * normal(random);
        z[j] += std::sqrt(parts[s]) * states_[s][j];
      }
    }
  }

 private:
  int dim_;
  const KeyStatistics& statistics_;
  std::vector<float> kinds_;
  std::vector<double> cumulative_;
  std::vector<double> states_[3];
};

// One KV head: keys as coefficients z in the basis of its directions.
struct HeadModel {
  std::vector<std::vector<double>> basis;
  std::vector<double> deviation;  // [dim] root of the eigenvalues; their sum of squares is dim
  std::vector<double> mean;
  double logit_deviation = 0;
};

HeadModel make_head(const SyntheticSpec& spec, Random& random) {
  const int dim = spec.shape.head_dim;
  HeadModel head{.basis = directions(dim, random), .deviation = {}, .mean = {}, .logit_deviation = 0};
  double total = 0;
  for (int j = 0; j < dim; ++j) total += std::pow(j + 1.0, -spec.statistics.spectrum_slope);
  for (int j = 0; j < dim; ++j)
    head.deviation.push_back(std::sqrt(dim * std::pow(j + 1.0, -spec.statistics.spectrum_slope) / total));
  const auto direction = directions(dim, random).front();
  for (const double x : direction) head.mean.push_back(spec.statistics.offset * std::sqrt(dim) * x);
  head.logit_deviation = spec.statistics.logit_deviation * std::exp(spec.statistics.logit_spread * normal(random));
  return head;
}

std::vector<double> to_key_space(const HeadModel& head, std::span<const double> z) {
  std::vector<double> key = head.mean;
  for (std::size_t j = 0; j < z.size(); ++j) {
    for (std::size_t i = 0; i < key.size(); ++i) key[i] += head.deviation[j] * z[j] * head.basis[j][i];
  }
  return key;
}

// The query whose logits have the head's deviation: w [dim] says how much each direction counts.
std::vector<double> query_from(const HeadModel& head, std::span<const double> w) {
  double variance = 0;
  for (std::size_t j = 0; j < w.size(); ++j) variance += w[j] * w[j] * head.deviation[j] * head.deviation[j];
  const double scale = head.logit_deviation * std::sqrt(static_cast<double>(w.size()) / variance);
  std::vector<double> q(w.size(), 0.0);
  for (std::size_t j = 0; j < w.size(); ++j) {
    for (std::size_t i = 0; i < q.size(); ++i) q[i] += scale * w[j] * head.basis[j][i];
  }
  return q;
}

// Mean mass over some queries of a token whose logit is `length` times the query's part along `direction`.
struct SinkTrial {
  double scale_root;                   // root of the head dim
  std::vector<std::vector<double>> q;  // [trials, dim]
  std::vector<double> others;          // [trials] log of the sum of exp(logit) over the other tokens
  std::span<const double> direction;

  double mass(double length) const {
    double sum = 0;
    for (std::size_t i = 0; i < q.size(); ++i) sum += 1 / (1 + std::exp(others[i] - length * dot(q[i], direction) / scale_root));
    return sum / static_cast<double>(q.size());
  }
};

double log_sum(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

}  // namespace

namespace {

// One KV head's share of a layer.
class HeadFiller {
 public:
  HeadFiller(const SyntheticSpec& spec, std::size_t head, SyntheticLayer& layer)
      : spec_(spec), layer_(layer), at_(head), random_(spec.seed * 1000 + head), head_(make_head(spec, random_)) {}

  void fill() {
    fill_keys();
    fill_queries();
    place_sink();
  }

 private:
  void fill_keys();
  void fill_queries();
  void place_sink();
  std::vector<double> query(int row, std::size_t g) const;

  const SyntheticSpec& spec_;
  SyntheticLayer& layer_;
  std::size_t at_;
  Random random_;
  HeadModel head_;
  std::size_t dim_ = static_cast<std::size_t>(spec_.shape.head_dim);
  std::vector<double> recent_ = std::vector<double>(dim_, 0.0);  // mean coefficients of the newest tokens
  std::vector<double> mean_query_ = std::vector<double>(dim_, 0.0);
};

void HeadFiller::fill_keys() {
  const auto heads = static_cast<std::size_t>(spec_.shape.kv_heads);
  const auto v_dim = static_cast<std::size_t>(spec_.shape.v_head_dim);
  const auto tokens = static_cast<std::size_t>(spec_.tokens);
  Story story(spec_.shape.head_dim, spec_.statistics, random_);
  std::vector<double> z(dim_);
  for (std::size_t t = 0; t < tokens; ++t) {
    story.next(random_, z);
    if (t + kRecent >= tokens) {
      for (std::size_t j = 0; j < dim_; ++j) recent_[j] += z[j] / kRecent;
    }
    const std::vector<double> key = to_key_space(head_, z);
    for (std::size_t i = 0; i < dim_; ++i) layer_.k[(t * heads + at_) * dim_ + i] = float_to_half(static_cast<float>(key[i]));
    for (std::size_t i = 0; i < v_dim; ++i)
      layer_.v[(t * heads + at_) * v_dim + i] = float_to_half(static_cast<float>(normal(random_)));
  }
}

void HeadFiller::fill_queries() {
  const auto group = static_cast<std::size_t>(spec_.shape.group());
  std::vector<double> tastes((group + 1) * dim_);  // lasting ones: of the KV head, of each query head
  for (double& x : tastes) x = normal(random_);
  const double toward_recent = kTowardRecent * spec_.statistics.recent_mass;
  std::vector<double> w(dim_);
  for (int i = 0; i < spec_.queries; ++i) {
    for (std::size_t g = 0; g < group; ++g) {
      for (std::size_t j = 0; j < dim_; ++j) {
        w[j] = 0.7 * tastes[j] + 0.6 * tastes[(g + 1) * dim_ + j] + 0.5 * normal(random_) + toward_recent * recent_[j];
      }
      const std::vector<double> q = query_from(head_, w);
      const std::size_t row = static_cast<std::size_t>(i * spec_.shape.q_heads) + at_ * group + g;
      for (std::size_t j = 0; j < dim_; ++j) {
        layer_.q[row * dim_ + j] = static_cast<float>(q[j]);
        mean_query_[j] += q[j] / (spec_.queries * static_cast<double>(group));
      }
    }
  }
}

std::vector<double> HeadFiller::query(int row, std::size_t g) const {
  const auto group = static_cast<std::size_t>(spec_.shape.group());
  const std::size_t at = (static_cast<std::size_t>(row * spec_.shape.q_heads) + at_ * group + g) * dim_;
  return {layer_.q.begin() + static_cast<std::ptrdiff_t>(at), layer_.q.begin() + static_cast<std::ptrdiff_t>(at + dim_)};
}

// The first token's key lies along the mean query, as long as gives it the wanted mass.
void HeadFiller::place_sink() {
  const auto heads = static_cast<std::size_t>(spec_.shape.kv_heads);
  const double length = std::sqrt(dot(mean_query_, mean_query_));
  for (double& x : mean_query_) x /= length;
  SinkTrial trial{.scale_root = std::sqrt(static_cast<double>(dim_)), .q = {}, .others = {}, .direction = mean_query_};
  for (int i = 0; i < kSinkTrials; ++i) {
    trial.q.push_back(query(i * (spec_.queries - 1) / kSinkTrials, static_cast<std::size_t>(i % spec_.shape.group())));
    std::vector<double> logits;
    for (std::size_t t = 1; t < static_cast<std::size_t>(spec_.tokens); ++t) {
      const std::uint16_t* key = layer_.k.data() + (t * heads + at_) * dim_;
      double sum = 0;
      for (std::size_t j = 0; j < dim_; ++j) sum += trial.q.back()[j] * static_cast<double>(half_to_float(key[j]));
      logits.push_back(sum / trial.scale_root);
    }
    trial.others.push_back(log_sum(logits));
  }
  double low = 0;
  double high = 1000;
  for (int i = 0; i < 40; ++i) (trial.mass((low + high) / 2) < spec_.statistics.sink_mass ? low : high) = (low + high) / 2;
  for (std::size_t j = 0; j < dim_; ++j) layer_.k[at_ * dim_ + j] = float_to_half(static_cast<float>(low * mean_query_[j]));
}

}  // namespace

SyntheticLayer make_layer(const SyntheticSpec& spec, Team& team) {
  const Shape& shape = spec.shape;
  SyntheticLayer layer;
  layer.k.resize(static_cast<std::size_t>(spec.tokens * shape.kv_heads * shape.head_dim));
  layer.v.resize(static_cast<std::size_t>(spec.tokens * shape.kv_heads * shape.v_head_dim));
  layer.q.resize(static_cast<std::size_t>(std::int64_t{spec.queries} * shape.q_heads * shape.head_dim));
  team.run([&](Worker& worker) {
    const auto [begin, end] = worker.share(shape.kv_heads);
    for (auto head = begin; head < end; ++head) HeadFiller(spec, static_cast<std::size_t>(head), layer).fill();
  });
  return layer;
}

namespace {

struct Measured {
  double deviation = 0, sink = 0, recent = 0, correlation[4] = {};
};

Measured measure(const SyntheticSpec& spec, const SyntheticLayer& layer, int head) {
  const auto dim = static_cast<std::size_t>(spec.shape.head_dim);
  const auto heads = static_cast<std::size_t>(spec.shape.kv_heads);
  const auto kv_head = static_cast<std::size_t>(head / spec.shape.group());
  const float* q = layer.q.data() + (layer.q.size() - static_cast<std::size_t>(spec.shape.q_heads - head) * dim);
  std::vector<double> logits;
  for (std::size_t t = 0; t < static_cast<std::size_t>(spec.tokens); ++t) {
    double sum = 0;
    for (std::size_t i = 0; i < dim; ++i)
      sum += static_cast<double>(q[i]) * static_cast<double>(half_to_float(layer.k[(t * heads + kv_head) * dim + i]));
    logits.push_back(sum / std::sqrt(static_cast<double>(dim)));
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  double all = 0, newest = 0, mean = 0, variance = 0;
  for (std::size_t t = 0; t < logits.size(); ++t) {
    const double weight = std::exp(logits[t] - top);
    all += weight;
    if (t + kRecent >= logits.size()) newest += weight;
    if (t > 0) mean += logits[t] / static_cast<double>(logits.size() - 1);
  }
  for (std::size_t t = 1; t < logits.size(); ++t) variance += (logits[t] - mean) * (logits[t] - mean);
  Measured result;
  const std::size_t lags[4] = {1, 8, 64, 512};
  for (int l = 0; l < 4; ++l) {
    for (std::size_t t = 1; t + lags[l] < logits.size(); ++t)
      result.correlation[l] += (logits[t] - mean) * (logits[t + lags[l]] - mean) / variance;
  }
  result.deviation = std::sqrt(variance / static_cast<double>(logits.size() - 1));
  result.sink = std::exp(logits[0] - top) / all;
  result.recent = newest / all;
  return result;
}

}  // namespace

std::string describe(const SyntheticSpec& spec, const SyntheticLayer& layer) {
  Measured mean;
  const double weight = 1.0 / spec.shape.q_heads;
  for (int head = 0; head < spec.shape.q_heads; ++head) {
    const Measured one = measure(spec, layer, head);
    mean.deviation += weight * one.deviation;
    mean.sink += weight * one.sink;
    mean.recent += weight * one.recent;
    for (int l = 0; l < 4; ++l) mean.correlation[l] += weight * one.correlation[l];
  }
  const auto& want = spec.statistics;
  return fmt::format(
      "logit deviation {:.2f} (captured {:.1f}), mass of the sink {:.2f} ({:.2f}), of the last 64 {:.2f} ({:.2f}), "
      "logit autocorrelation over 1, 8, 64, 512 tokens {:.2f} {:.2f} {:.2f} {:.2f} (.76 .58 .49 .25)",
      mean.deviation, want.logit_deviation, mean.sink, want.sink_mass, mean.recent, want.recent_mass, mean.correlation[0],
      mean.correlation[1], mean.correlation[2], mean.correlation[3]);
}

}  // namespace tactic::program
