// The query metric: the observed moment, its average over rotary turns, Cholesky factor, diagonal form, fallbacks.
#include <limits>

#include "cluster/support.h"

namespace tactic::test {
namespace {

using Layout = Rotary::Layout;
using Matrix = std::vector<double>;

QueryMoment moment_of(const std::vector<float>& q, int dim) {
  QueryMoment moment(dim);
  moment.add(q.data(), static_cast<int>(q.size()) / dim, 1, dim, 0);
  return moment;
}

// mean of q q^T over the last `rows` rows.
Matrix outer_mean(const std::vector<float>& q, int dim, int rows) {
  Matrix out(static_cast<std::size_t>(dim * dim), 0.0);
  const int total = static_cast<int>(q.size()) / dim;
  for (int r = total - rows; r < total; ++r) {
    const float* row = q.data() + r * dim;
    for (int i = 0; i < dim; ++i) {
      for (int j = 0; j < dim; ++j) out[static_cast<std::size_t>(i * dim + j)] += static_cast<double>(row[i]) * row[j] / rows;
    }
  }
  return out;
}

void expect_near(const Matrix& got, const Matrix& want, double relative) {
  ASSERT_EQ(got.size(), want.size());
  double largest = 0;
  for (const double x : want) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], relative * largest) << i;
}

// Sums of at most 128 * 16 products in f32.
constexpr double kF32 = 128 * 0x1p-24;

TEST(QueryMoment, IsTheMeanOuterProductOfTheLastWindowOfALongPrompt) {
  for (const Isa isa : supported_isas()) {
    const IsaScope scope(isa);
    for (const int dim : {64, 80, 256}) {
      const auto q = random_queries(300, dim, 1);
      const QueryMoment moment = moment_of(q, dim);
      EXPECT_EQ(moment.weight(), QueryMoment::kWindow);
      expect_near(moment.mean(), outer_mean(q, dim, QueryMoment::kWindow), kF32);
    }
  }
}

TEST(QueryMoment, AveragesTheHeadsOfAGroupThroughStrides) {
  constexpr int kDim = 64, kTokens = 40, kGroup = 3;
  const auto q = random_queries(kTokens * 8, kDim, 2);  // [tokens, 8 heads, d], heads 2 .. 4 are the group
  QueryMoment moment(kDim);
  moment.add(q.data() + 2 * kDim, kTokens, kGroup, 8 * kDim, kDim);
  std::vector<float> group;
  for (int t = 0; t < kTokens; ++t) group.insert(group.end(), q.begin() + (t * 8 + 2) * kDim, q.begin() + (t * 8 + 5) * kDim);
  EXPECT_EQ(moment.weight(), kTokens);
  expect_near(moment.mean(), outer_mean(group, kDim, kTokens * kGroup), kF32);
}

TEST(QueryMoment, AddsUpOverUbatchesUntilTheWindowIsFull) {
  constexpr int kDim = 64;
  const auto q = random_queries(QueryMoment::kWindow, kDim, 3);
  for (const int step : {1, 5, 50, 100}) {
    QueryMoment moment(kDim);
    for (int t = 0; t < QueryMoment::kWindow; t += step) {
      moment.add(q.data() + t * kDim, std::min(step, QueryMoment::kWindow - t), 1, kDim, 0);
    }
    EXPECT_EQ(moment.weight(), QueryMoment::kWindow);
    expect_near(moment.mean(), outer_mean(q, kDim, QueryMoment::kWindow), kF32);
  }
}

TEST(QueryMoment, OldQueriesFadeAsNewOnesArrive) {
  constexpr int kDim = 16;
  std::vector<float> old(kDim * 128, 0.0f);
  std::vector<float> fresh(kDim, 0.0f);
  for (std::size_t i = 0; i < old.size(); i += kDim) old[i] = 1;
  fresh[1] = 1;
  QueryMoment moment = moment_of(old, kDim);
  for (int t = 0; t < 128; ++t) moment.add(fresh.data(), 1, 1, kDim, 0);
  const double kept = std::pow(1 - 32.0 / 128, 4);  // four bunches displace a quarter each
  EXPECT_NEAR(moment.mean()[0], kept, 1e-6);
  EXPECT_NEAR(moment.mean()[kDim + 1], 1 - kept, 1e-6);
  for (int t = 0; t < 4 * 128; ++t) moment.add(fresh.data(), 1, 1, kDim, 0);
  EXPECT_LT(moment.mean()[0], 0.01);
}

TEST(QueryMoment, PassesOverTokensThatAreNotFinite) {
  constexpr int kDim = 64;
  auto q = random_queries(20, kDim, 4);
  const QueryMoment clean = moment_of(std::vector<float>(q.begin() + kDim, q.end()), kDim);
  q[7] = std::numeric_limits<float>::quiet_NaN();
  const QueryMoment moment = moment_of(q, kDim);
  EXPECT_EQ(moment.weight(), 19);
  expect_near(moment.mean(), clean.mean(), 1e-12);
}

TEST(QueryMoment, RestoresFromItsSum) {
  const QueryMoment moment = moment_of(random_queries(70, 64, 5), 64);
  QueryMoment copy(64);
  copy.restore(moment.sum(), moment.weight());
  EXPECT_EQ(copy.mean(), moment.mean());
  EXPECT_EQ(copy.weight(), 70);
}

// ---- turns -----------------------------------------------------------------------------------------------------------

// R M R^T for a turn by `position`, with R written out.
Matrix turned(const Matrix& m, int dim, const Rotary& rotary, int position) {
  const auto d = static_cast<std::size_t>(dim);
  const std::size_t pairs = rotary.frequency.size();
  Matrix r(d * d, 0.0);
  for (std::size_t i = 0; i < d; ++i) r[i * d + i] = 1;
  for (std::size_t p = 0; p < pairs; ++p) {
    const std::size_t a = rotary.layout == Layout::interleaved ? 2 * p : p;
    const std::size_t b = rotary.layout == Layout::interleaved ? 2 * p + 1 : p + pairs;
    const double angle = static_cast<double>(rotary.frequency[p]) * position;
    r[a * d + a] = r[b * d + b] = std::cos(angle);
    r[b * d + a] = std::sin(angle);
    r[a * d + b] = -std::sin(angle);
  }
  Matrix half(d * d, 0.0), out(d * d, 0.0);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t k = 0; k < d; ++k) {
      for (std::size_t j = 0; j < d; ++j) half[i * d + j] += r[i * d + k] * m[k * d + j];
    }
  }
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < d; ++j) {
      for (std::size_t k = 0; k < d; ++k) out[i * d + j] += half[i * d + k] * r[j * d + k];
    }
  }
  return out;
}

TEST(RotaryAverage, EqualsTheMeanOverExplicitRotations) {
  constexpr int kDim = 32, kSpan = 61;
  const Matrix moment = moment_of(random_queries(20, kDim, 6), kDim).mean();
  for (const Layout layout : {Layout::interleaved, Layout::halves}) {
    for (const int pairs : {kDim / 2, kDim / 4}) {  // partial rotary dims: the upper half of the head does not turn
      Rotary rotary = make_rotary(layout, pairs);
      rotary.frequency[1] = rotary.frequency[0];  // equal frequencies: their common part must survive
      Matrix want(moment.size(), 0.0);
      for (int s = 0; s <= kSpan; ++s) {
        const Matrix one = turned(moment, kDim, rotary, s);
        for (std::size_t i = 0; i < want.size(); ++i) want[i] += one[i] / (kSpan + 1);
      }
      Matrix got = moment;
      average_over_turns(got, kDim, rotary, kSpan);
      expect_near(got, want, 1e-10);
    }
  }
}

TEST(RotaryAverage, LeavesMomentsOfUnturnedHeadsAlone) {
  const Matrix moment = moment_of(random_queries(20, 32, 7), 32).mean();
  for (const Layout layout : {Layout::none, Layout::unknown}) {
    Matrix got = moment;
    average_over_turns(got, 32, make_rotary(layout, 16), 100);
    EXPECT_EQ(got, moment);
  }
}

// ---- factor ----------------------------------------------------------------------------------------------------------

TEST(Cholesky, FactorTimesItsTransposeIsTheMatrix) {
  constexpr int kDim = 48;
  const Matrix matrix = moment_of(random_queries(100, kDim, 8), kDim).mean();
  Matrix factor = matrix;
  cholesky(factor, kDim);
  Matrix product(matrix.size(), 0.0);
  for (int i = 0; i < kDim; ++i) {
    for (int j = 0; j < kDim; ++j) {
      if (j > i) {
        EXPECT_EQ(factor[static_cast<std::size_t>(i * kDim + j)], 0);
      }
      for (int k = 0; k < kDim; ++k) {
        product[static_cast<std::size_t>(i * kDim + j)] +=
            factor[static_cast<std::size_t>(i * kDim + k)] * factor[static_cast<std::size_t>(j * kDim + k)];
      }
    }
  }
  expect_near(product, matrix, 1e-12);
}

TEST(Cholesky, StaysFiniteOnASingularMatrix) {
  Matrix ones(16 * 16, 1.0);
  cholesky(ones, 16);
  for (const double x : ones) ASSERT_TRUE(std::isfinite(x));
}

TEST(QueryMetric, DistanceIsTheMeanSquaredDifferenceOfScores) {
  constexpr int kDim = 64;
  const auto q = random_queries(100, kDim, 9);
  const MetricSpace metric = make_metric(Metric::query, moment_of(q, kDim), {Layout::none, {}}, 0.0f);
  ASSERT_EQ(metric.kind, Metric::query);
  const auto keys = random_queries(2, kDim, 10);
  std::vector<float> difference(kDim);
  for (std::size_t i = 0; i < kDim; ++i) difference[i] = keys[i] - keys[kDim + i];
  double want = 0;
  for (std::size_t r = 0; r < 100; ++r) {
    double score = 0;
    for (std::size_t i = 0; i < kDim; ++i) score += static_cast<double>(q[r * kDim + i]) * difference[i];
    want += score * score / 100;
  }
  double got = 0;
  for (const double y : to_space(metric, difference)) got += y * y;
  EXPECT_NEAR(got, want, want * kDim * kF32);
}

TEST(QueryMetric, ShrinksTowardsTheIdentityAndKeepsTheTrace) {
  constexpr int kDim = 64;
  const QueryMoment moment = moment_of(random_queries(60, kDim, 11), kDim);
  const Matrix mean = moment.mean();
  double trace = 0;
  for (std::size_t i = 0; i < kDim; ++i) trace += mean[i * kDim + i];
  for (const Layout layout : {Layout::none, Layout::halves}) {
    const MetricSpace metric = make_metric(Metric::query, moment, make_rotary(layout, kDim / 2), 0.1f);
    double factor_trace = 0;
    for (const float x : metric.factor) factor_trace += static_cast<double>(x) * x;
    EXPECT_NEAR(factor_trace, trace, trace * 1e-6);
  }
  const MetricSpace whole = make_metric(Metric::query, moment, {Layout::none, {}}, 1.0f);
  EXPECT_NEAR(whole.factor[0], std::sqrt(trace / kDim), 1e-4);
  EXPECT_EQ(whole.factor[kDim], 0);
}

TEST(DiagonalMetric, IsEqualInsideRotaryPairs) {
  constexpr std::size_t kDim = 64;
  const QueryMoment moment = moment_of(random_queries(60, kDim, 12), kDim);
  const auto factor = [&](Layout layout) {
    return make_metric(Metric::diagonal, moment, make_rotary(layout, kDim / 2), 0.1f).factor;
  };
  const auto mean = moment.mean();
  const auto expected = [&](std::initializer_list<std::size_t> dims) {
    double sum = 0, trace = 0;
    for (const std::size_t i : dims) sum += mean[i * kDim + i];
    for (std::size_t i = 0; i < kDim; ++i) trace += mean[i * kDim + i];
    return std::sqrt(0.9 * sum / static_cast<double>(dims.size()) + 0.1 * trace / kDim);
  };
  const auto interleaved = factor(Layout::interleaved);
  const auto halves = factor(Layout::halves);
  const auto unknown = factor(Layout::unknown);
  ASSERT_EQ(interleaved.size(), kDim);
  for (std::size_t p = 0; p < kDim / 2; ++p) {
    EXPECT_NEAR(interleaved[2 * p], expected({2 * p, 2 * p + 1}), 1e-4);
    EXPECT_EQ(interleaved[2 * p], interleaved[2 * p + 1]);
    EXPECT_NEAR(halves[p], expected({p, p + kDim / 2}), 1e-4);
    EXPECT_EQ(halves[p], halves[p + kDim / 2]);
    EXPECT_EQ(unknown[p], unknown[p + kDim / 2]);
    EXPECT_EQ(unknown[2 * p], unknown[2 * p + 1]);
  }
}

TEST(Metric, FallsBackWithoutLayoutAndWithoutQueries) {
  const QueryMoment moment = moment_of(random_queries(60, 64, 13), 64);
  EXPECT_EQ(make_metric(Metric::query, moment, {}, 0.1f).kind, Metric::diagonal);
  EXPECT_EQ(make_metric(Metric::query, QueryMoment(64), make_rotary(Layout::halves, 32), 0.1f).kind, Metric::l2);
  EXPECT_EQ(make_metric(Metric::diagonal, moment_of(std::vector<float>(640, 0.0f), 64), {}, 0.1f).kind, Metric::l2);
  EXPECT_EQ(make_metric(Metric::l2, moment, make_rotary(Layout::halves, 32), 0.1f).kind, Metric::l2);
}

}  // namespace
}  // namespace tactic::test
