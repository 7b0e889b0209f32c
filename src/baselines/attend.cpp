// Attention over a selection, and the report of a step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "baselines/rules.h"
#include "decode/dense.h"
#include "decode/workspace.h"

namespace tactic {
namespace {

// One query head of a KV head as a layer of its own, so that it can have its own tokens.
struct SingleHead {
  Query query;
  KvView kv;
};

SingleHead single_head(const Query& query, const KvView& kv, int head) {
  const Shape& shape = query.shape;
  SingleHead one{query, kv};
  one.query.q = query.q + static_cast<std::ptrdiff_t>(head) * shape.head_dim;
  one.query.shape = {1, 1, shape.head_dim, shape.v_head_dim};
  one.query.params.sink_logits = nullptr;
  const int kv_head = head / shape.group();
  one.kv.k.data += kv_head * kv.k.head_stride;
  one.kv.v.data += kv_head * kv.v.head_stride;
  one.kv.kv_heads = 1;
  return one;
}

void attend_share(Worker& worker, const Query& query, const KvView& kv, const Selection& selection, PartialSet& parts) {
  for (std::size_t h = 0; h < selection.tokens.size(); ++h) {
    const auto& tokens = selection.tokens[h];
    const auto [first, last] = worker.share(static_cast<std::int64_t>(tokens.size()));
    const TokenList list{tokens.data() + first, 0, last - first};
    const int head = static_cast<int>(h);
    if (selection.by_query_head) {
      const SingleHead one = single_head(query, kv, head);
      attend_list(one.query, one.kv, 0, list, parts.at(worker.rank(), head), nullptr, 0);
    } else {
      attend_list(query, kv, head, list, parts.at(worker.rank(), head * query.shape.group()), nullptr, 0);
    }
  }
}

double row_bytes(const KvView& kv) {
  return static_cast<double>(static_cast<std::size_t>(kv.k.dim) * size_of(kv.k.type) +
                             static_cast<std::size_t>(kv.v.dim) * size_of(kv.v.type));
}

void fill_report(const Query& query, const KvView& kv, const Selection& selection, StepReport& report) {
  const Shape& shape = query.shape;
  const auto group = static_cast<std::size_t>(shape.group());
  const std::int64_t words = (kv.tokens + 63) / 64;
  std::vector<std::int32_t> united;
  double rows = 0;
  for (std::size_t h = 0; h < static_cast<std::size_t>(shape.kv_heads); ++h) {
    if (selection.by_query_head) {
      unite(std::span(selection.tokens).subspan(h * group, group), united);
    } else {
      united = selection.tokens[h];
    }
    rows += static_cast<double>(united.size());
    if (!report.attended.empty()) report.attended[h] = static_cast<std::int64_t>(united.size());
    if (report.token_bits.empty()) continue;
    std::uint64_t* bits = report.token_bits.data() + static_cast<std::ptrdiff_t>(h) * words;
    for (const std::int32_t t : united) bits[t / 64] |= std::uint64_t{1} << (t % 64);
  }
  if (!report.budget.empty()) std::copy(selection.own.begin(), selection.own.end(), report.budget.begin());
  std::fill(report.estimated_mass.begin(), report.estimated_mass.end(), std::numeric_limits<float>::quiet_NaN());
  report.bytes = row_bytes(kv) * rows + selection.metadata_bytes;
  report.dense_bytes = row_bytes(kv) * static_cast<double>(kv.tokens) * shape.kv_heads;
}

}  // namespace

Status attend_selection(Team& team, const Query& query, const KvView& kv, const Selection& selection, float* out, float* lse,
                        StepReport* report) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const Shape& shape = query.shape;
  PartialSet parts, result;
  parts.reserve(team.size(), shape.q_heads, shape.v_head_dim);
  result.reserve(1, shape.q_heads, shape.v_head_dim);
  team.run([&](Worker& worker) {
    attend_share(worker, query, kv, selection, parts);
    worker.barrier();
    merge_workers(worker, parts, result);
  });
  normalise(result.at(0), shape.q_heads, shape.v_head_dim, query.params.sink_logits, out, lse);
  if (report != nullptr) {
    fill_report(query, kv, selection, *report);
    report->attend_us = report->total_us = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
  }
  const bool finite = std::all_of(out, out + shape.q_heads * shape.v_head_dim, [](float x) { return std::isfinite(x); });
  return finite ? Status::ok : Status::non_finite;
}

}  // namespace tactic
