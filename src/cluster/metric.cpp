// The query metric: the observed moment of queries, its average over rotary turns, shrinkage, Cholesky factor, fallbacks.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <complex>
#include <vector>

#include "cluster/cluster.h"
#include "cluster/kernels.h"

namespace tactic {
namespace {

bool is_finite(const float* q, int dim) {
  return std::all_of(q, q + dim, [](float x) { return std::isfinite(x); });
}

// Dims (a, b) that turn together by `frequency` radians a position.
struct Pair {
  int a = 0;
  int b = 0;
  double frequency = 0;
};

// All dims of a head in pairs; those that do not turn are paired with frequency 0.
std::vector<Pair> pairs_of(const Rotary& rotary, int dim) {
  const int turned = std::min(static_cast<int>(rotary.frequency.size()), dim / 2);
  std::vector<Pair> pairs;
  for (int p = 0; p < turned; ++p) {
    const double frequency = static_cast<double>(rotary.frequency[static_cast<std::size_t>(p)]);
    if (rotary.layout == Rotary::Layout::interleaved) {
      pairs.push_back({2 * p, 2 * p + 1, frequency});
    } else {
      pairs.push_back({p, p + turned, frequency});
    }
  }
  for (int i = 2 * turned; i + 1 < dim; i += 2) pairs.push_back({i, i + 1, 0});
  return pairs;
}

// Mean of exp(i w s) over s = 0 .. span: a geometric series.
std::complex<double> mean_turn(double w, int span) {
  const double count = span + 1;
  const std::complex<double> step = 1.0 - std::polar(1.0, w);
  if (std::abs(step) < 1e-9) return std::polar(1.0, w * span / 2);  // w s turns by less than 1e-5: one direction
  return (1.0 - std::polar(1.0, w * count)) / (count * step);
}

// The diagonal, equal in the sets of dims that rotation mixes.
std::vector<double> equalised_diagonal(std::span<const double> matrix, int dim, const Rotary& rotary) {
  std::vector<double> diagonal(static_cast<std::size_t>(dim));
  for (int i = 0; i < dim; ++i) diagonal[static_cast<std::size_t>(i)] = matrix[static_cast<std::size_t>(i * dim + i)];
  const auto equalise = [&](std::initializer_list<int> dims) {
    double sum = 0;
    for (const int i : dims) sum += diagonal[static_cast<std::size_t>(i)];
    for (const int i : dims) diagonal[static_cast<std::size_t>(i)] = sum / static_cast<double>(dims.size());
  };
  if (rotary.layout == Rotary::Layout::unknown) {
    // {2p, 2p + 1} and {p, p + d / 2} both stay inside these.
    for (int i = 0; i + 1 < dim / 2; i += 2) equalise({i, i + 1, i + dim / 2, i + 1 + dim / 2});
  } else if (rotary.layout != Rotary::Layout::none) {
    for (const Pair& pair : pairs_of(rotary, dim)) {
      if (pair.frequency != 0) equalise({pair.a, pair.b});
    }
  }
  return diagonal;
}

}  // namespace

// ---- moment ----------------------------------------------------------------------------------------------------------

// Makes room in the window for `arriving` tokens.
void QueryMoment::forget(int arriving) const {
  const double kept = std::min(weight_, static_cast<double>(kWindow - arriving));
  if (kept == weight_) return;
  const double factor = kept / weight_;
  for (double& x : sum_) x *= factor;
  weight_ = kept;
}

void QueryMoment::fold() const {
  if (pending_tokens_ == 0) return;
  forget(pending_tokens_);
  cluster_kernels().outer_double(pending_.data(), static_cast<int>(pending_.size()) / dim_, dim_, sum_.data());
  weight_ += pending_tokens_;
  pending_.clear();
  pending_tokens_ = 0;
}

void QueryMoment::add(const float* q, int tokens, int group, std::int64_t token_stride, std::int64_t head_stride) {
  assert(dim_ > 0 && dim_ % 16 == 0 && group > 0);
  const int counted = std::min(tokens, kWindow);
  if (counted >= kBunch) {  // room for all of them at once: a call of kWindow tokens leaves nothing older
    fold();
    forget(counted);
  }
  pending_.reserve(static_cast<std::size_t>(kBunch) * group * dim_);
  const float scale = 1.0f / std::sqrt(static_cast<float>(group));
  for (int i = tokens - counted; i < tokens; ++i) {
    const float* token = q + i * token_stride;
    bool finite = true;
    for (int g = 0; g < group; ++g) finite = finite && is_finite(token + g * head_stride, dim_);
    if (!finite) continue;
    for (int g = 0; g < group; ++g) {
      const float* row = token + g * head_stride;
      for (int k = 0; k < dim_; ++k) pending_.push_back(row[k] * scale);
    }
    if (++pending_tokens_ == kBunch) fold();
  }
}

double QueryMoment::weight() const {
  fold();
  return weight_;
}

std::span<const double> QueryMoment::sum() const {
  fold();
  return sum_;
}

std::vector<double> QueryMoment::mean() const {
  fold();
  std::vector<double> out(sum_.size(), 0.0);
  if (weight_ == 0) return out;
  for (int i = 0; i < dim_; ++i) {
    for (int j = 0; j <= i; ++j) {
      const double value = sum_[static_cast<std::size_t>(i * dim_ + j)] / weight_;
      out[static_cast<std::size_t>(i * dim_ + j)] = value;
      out[static_cast<std::size_t>(j * dim_ + i)] = value;
    }
  }
  return out;
}

void QueryMoment::restore(std::span<const double> sum, double weight) {
  assert(sum.size() == sum_.size());
  std::copy(sum.begin(), sum.end(), sum_.begin());
  weight_ = weight;
  pending_.clear();
  pending_tokens_ = 0;
}

// ---- metric ----------------------------------------------------------------------------------------------------------

// A 2 x 2 block X between pairs p and r turns as R(p s) X R(r s)^T. As a map of the complex plane X z = u z + v conj(z), and the
// turned one is u exp(i (wp - wr) s) z + v exp(i (wp + wr) s) conj(z): each part averages by itself, in closed form.
void average_over_turns(std::span<double> moment, int dim, const Rotary& rotary, int span) {
  if (rotary.layout == Rotary::Layout::unknown || rotary.layout == Rotary::Layout::none) return;
  const auto at = [&](int i, int j) -> double& { return moment[static_cast<std::size_t>(i * dim + j)]; };
  const std::vector<Pair> pairs = pairs_of(rotary, dim);
  for (const Pair& p : pairs) {
    for (const Pair& r : pairs) {
      std::complex<double> u(at(p.a, r.a) + at(p.b, r.b), at(p.b, r.a) - at(p.a, r.b));
      std::complex<double> v(at(p.a, r.a) - at(p.b, r.b), at(p.b, r.a) + at(p.a, r.b));
      u *= 0.5 * mean_turn(p.frequency - r.frequency, span);
      v *= 0.5 * mean_turn(p.frequency + r.frequency, span);
      at(p.a, r.a) = u.real() + v.real();
      at(p.b, r.b) = u.real() - v.real();
      at(p.b, r.a) = v.imag() + u.imag();
      at(p.a, r.b) = v.imag() - u.imag();
    }
  }
}

void cholesky(std::span<double> matrix, int dim) {
  const auto at = [&](int i, int j) -> double& { return matrix[static_cast<std::size_t>(i * dim + j)]; };
  double largest = 0;
  for (int i = 0; i < dim; ++i) largest = std::max(largest, at(i, i));
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = at(i, j);
      for (int k = 0; k < j; ++k) sum -= at(i, k) * at(j, k);
      // Shrinkage keeps pivots above shrinkage * tr / d; the floor is for a shrinkage of about the rounding error.
      at(i, j) = i == j ? std::sqrt(std::max(sum, 1e-15 * largest)) : sum / at(j, j);
    }
    for (int j = i + 1; j < dim; ++j) at(i, j) = 0;
  }
}

MetricSpace make_metric(Metric wanted, const QueryMoment& moment, const Rotary& rotary, float shrinkage) {
  const int dim = moment.dim();
  MetricSpace space{Metric::l2, dim, {}};
  if (wanted == Metric::l2 || moment.empty()) return space;
  std::vector<double> matrix = moment.mean();
  double trace = 0;
  for (int i = 0; i < dim; ++i) trace += matrix[static_cast<std::size_t>(i * dim + i)];
  if (!(trace > 0) || !std::isfinite(trace)) return space;

  const auto keep = 1.0 - static_cast<double>(shrinkage);
  const double floor = static_cast<double>(shrinkage) * trace / dim;
  if (wanted == Metric::query && rotary.layout != Rotary::Layout::unknown) {
    average_over_turns(matrix, dim, rotary, kRotarySpan);
    for (double& x : matrix) x *= keep;
    for (int i = 0; i < dim; ++i) matrix[static_cast<std::size_t>(i * dim + i)] += floor;
    cholesky(matrix, dim);
    space.kind = Metric::query;
    space.factor.assign(matrix.begin(), matrix.end());
  } else {
    space.kind = Metric::diagonal;
    for (const double x : equalised_diagonal(matrix, dim, rotary)) {
      space.factor.push_back(static_cast<float>(std::sqrt(keep * x + floor)));
    }
  }
  return space;
}

}  // namespace tactic
