// Statistics of the synthetic keys: those that they were made for, and the fewest tokens that reach a share of the mass.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

#include "core/half.h"
#include "session.h"
#include "synthetic.h"

namespace tactic::bench::gpu {
namespace {

struct Statistics {
  double deviation = 0, sink = 0, recent = 0;
  double correlation[4] = {};         // of the logits over 1, 8, 64, 512 tokens
  double tokens75 = 0, tokens90 = 0;  // fewest tokens that hold 75% and 90% of the mass
};

std::vector<float> logits_of(const Case& c, const std::vector<std::uint16_t>& keys, const float* q) {
  std::vector<float> logits;
  for (std::int64_t t = 0; t < c.context; ++t) {
    float sum = 0;
    for (int i = 0; i < c.head_dim; ++i) sum += q[i] * bf16_to_float(keys[static_cast<std::size_t>(t * c.head_dim + i)]);
    logits.push_back(sum / std::sqrt(static_cast<float>(c.head_dim)));
  }
  return logits;
}

double fewest(const std::vector<double>& descending, double share) {
  double left = share * std::accumulate(descending.begin(), descending.end(), 0.0);
  std::size_t count = 0;
  while (count < descending.size() && left > 0) left -= descending[count++];
  return static_cast<double>(count);
}

Statistics measure(const std::vector<float>& logits) {
  Statistics s;
  const std::size_t n = logits.size();
  const double top = *std::max_element(logits.begin(), logits.end());
  const double mean = std::accumulate(logits.begin() + 1, logits.end(), 0.0) / static_cast<double>(n - 1);
  std::vector<double> weights;
  double variance = 0;
  for (std::size_t t = 0; t < n; ++t) {
    weights.push_back(std::exp(logits[t] - top));
    if (t > 0) variance += (logits[t] - mean) * (logits[t] - mean);
  }
  const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
  s.deviation = std::sqrt(variance / static_cast<double>(n - 1));
  s.sink = weights[0] / all;
  s.recent = std::accumulate(weights.end() - 64, weights.end(), 0.0) / all;
  const std::size_t lags[4] = {1, 8, 64, 512};
  for (int l = 0; l < 4; ++l) {
    for (std::size_t t = 1; t + lags[l] < n; ++t)
      s.correlation[l] += (logits[t] - mean) * (logits[t + lags[l]] - mean) / variance;
  }
  std::sort(weights.begin(), weights.end(), std::greater<>());
  s.tokens75 = fewest(weights, 0.75), s.tokens90 = fewest(weights, 0.9);
  return s;
}

}  // namespace

void describe_synthetic(const Session& session) {
  const Pool pool(session.settings.pool_gigabytes * 1e9);
  for (const Cell& cell : session.settings.cells) {
    const Heads& heads = session.settings.shapes[0];
    Case c = pool.cut(heads, cell);
    cudaEvent_t begin = nullptr, end = nullptr;
    check(cudaEventCreate(&begin), "cudaEventCreate"), check(cudaEventCreate(&end), "cudaEventCreate");
    check(cudaEventRecord(begin), "cudaEventRecord");
    const SyntheticQueries queries = fill_synthetic(c, {}, 1);
    check(cudaEventRecord(end), "cudaEventRecord"), check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    const std::vector<float> rows = queries.rows.to_host();
    Statistics mean;
    const int layers = std::min(c.layers, 4);
    const double weight = 1.0 / (layers * c.q_heads);
    const auto row = static_cast<std::int64_t>(c.q_heads) * c.head_dim;
    std::vector<std::uint16_t> keys(static_cast<std::size_t>(c.context * c.head_dim));
    for (int layer = 0; layer < layers; ++layer) {
      for (int head = 0; head < c.kv_heads; ++head) {
        check(cudaMemcpy2D(keys.data(), static_cast<std::size_t>(c.row_bytes()),
                           c.k[static_cast<std::size_t>(layer)] + head * c.head_dim,
                           static_cast<std::size_t>(c.row_bytes() * c.kv_heads), static_cast<std::size_t>(c.row_bytes()),
                           static_cast<std::size_t>(c.context), cudaMemcpyDeviceToHost),
              "copy of keys");
        for (int g = 0; g < c.group(); ++g) {
          const std::int64_t at =
              (std::int64_t{layer} * c.batch * kQueryRows + kQueryRows - 1) * row + (head * c.group() + g) * c.head_dim;
          const Statistics one = measure(logits_of(c, keys, rows.data() + at));
          mean.deviation += weight * one.deviation, mean.sink += weight * one.sink, mean.recent += weight * one.recent;
          mean.tokens75 += weight * one.tokens75, mean.tokens90 += weight * one.tokens90;
          for (int l = 0; l < 4; ++l) mean.correlation[l] += weight * one.correlation[l];
        }
      }
    }
    const program::KeyStatistics want;
    std::printf(
        "synthetic keys %d x %lld (%d layers in %.0f ms): logit deviation %.2f (captured %.1f), mass of the sink %.2f (%.2f), "
        "of the last 64 %.2f (%.2f), autocorrelation %.2f %.2f %.2f %.2f (.76 .58 .49 .25); fewest tokens for 75%%: %.0f, "
        "90%%: %.0f\n",
        c.batch, static_cast<long long>(c.context), c.layers, static_cast<double>(milliseconds), mean.deviation,
        want.logit_deviation, mean.sink, want.sink_mass, mean.recent, want.recent_mass, mean.correlation[0], mean.correlation[1],
        mean.correlation[2], mean.correlation[3], mean.tokens75, mean.tokens90);
    std::fflush(stdout);
  }
}

}  // namespace tactic::bench::gpu
