// The oracle of the attention room: scalar code, double sums, two passes instead of an online softmax.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attend/attend.h"
#include "core/half.h"

namespace tactic::reference {
namespace {

double logit(const Query& query, const KvView& kv, int q_head, std::int64_t token) {
  const int dim = query.shape.head_dim;
  const float* q = query.q + static_cast<std::ptrdiff_t>(q_head) * dim;
  const std::byte* k = row(kv, kv.k, token, q_head / query.shape.group());
  double sum = 0;
  for (int i = 0; i < dim; ++i) sum += static_cast<double>(q[i]) * load_element(k, kv.k.type, static_cast<std::size_t>(i));
  sum *= query.params.scale;
  if (!std::isfinite(sum)) return std::numeric_limits<double>::quiet_NaN();  // an infinite logit is as broken as NaN
  const double cap = query.params.softcap;
  return cap > 0 ? cap * std::tanh(sum / cap) : sum;
}

std::int64_t token_of(const TokenList& list, std::int64_t i) { return list.ids != nullptr ? list.ids[i] : list.first + i; }

void attend_head(const Query& query, const KvView& kv, int q_head, const TokenList& list, const Partial& out, int slot,
                 float* logits) {
  const auto count = static_cast<std::size_t>(list.count);
  std::vector<double> s(count);
  double maximum = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < count; ++i) {
    s[i] = logit(query, kv, q_head, token_of(list, static_cast<std::int64_t>(i)));
    if (logits != nullptr) logits[i] = static_cast<float>(s[i]);
    if (!std::isnan(maximum) && !(s[i] <= maximum)) maximum = s[i];  // NaN sticks
  }
  const auto dim = static_cast<std::size_t>(query.shape.v_head_dim);
  std::vector<double> o(dim, 0.0);
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double p = std::exp(s[i] - maximum);
    const std::byte* v = row(kv, kv.v, token_of(list, static_cast<std::int64_t>(i)), q_head / query.shape.group());
    sum += p;
    for (std::size_t j = 0; j < dim; ++j) o[j] += p * load_element(v, kv.v.type, j);
  }
  out.maximum[slot] = static_cast<float>(maximum);
  out.sum[slot] = static_cast<float>(sum);
  std::transform(o.begin(), o.end(), out.output + static_cast<std::size_t>(slot) * dim,
                 [](double x) { return static_cast<float>(x); });
}

}  // namespace

void attend_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, const Partial& out, float* logits,
                 std::int64_t logit_stride) {
  const int group = query.shape.group();
  for (int g = 0; g < group; ++g) {
    attend_head(query, kv, kv_head * group + g, list, out, g, logits == nullptr ? nullptr : logits + g * logit_stride);
  }
}

void attend_all(const Query& query, const KvView& kv, const TokenList& list, const Partial& out) {
  for (int head = 0; head < query.shape.q_heads; ++head) attend_head(query, kv, head, list, out, head, nullptr);
}

void score_list(const Query& query, const KvView& kv, int kv_head, const TokenList& list, float* logits,
                std::int64_t logit_stride) {
  const int group = query.shape.group();
  for (int g = 0; g < group; ++g) {
    for (std::int64_t i = 0; i < list.count; ++i) {
      logits[g * logit_stride + i] = static_cast<float>(logit(query, kv, kv_head * group + g, token_of(list, i)));
    }
  }
}

}  // namespace tactic::reference
