// Estimating and choosing stage by stage: units read, success and deficit of whole pipelines, with the targets swept to where
// they succeed equally often. 1 unit: a K+V row pair in f16. The first 4 tokens and the last 64 of the prompt are always
// attended.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "bench/study.h"
#include "core/half.h"
#include "select/paper_fit.h"
#include "select/select.h"

namespace tactic::bench {
namespace {

constexpr int kSinks = 4;
constexpr int kRecent = 64;
constexpr int kSteps = 4;                                              // of a layer, evenly over those captured
constexpr double kMargins[] = {2.0, 1.4, 1.0, .7, .5, .35, .25, .15};  // internal target 1 - margin (1 - P)
constexpr double kMasses[] = {.75, .9, .95};

// One step of one KV head: exact weights, for judging.
struct Truth {
  std::vector<float> mass;     // [G, stride] of the clusters
  std::vector<double> mean;    // [G, clusters, D] sum of weight V
  std::vector<double> out;     // [G, D] sum over the fixed tokens
  std::vector<double> weight;  // [G, tokens]
  std::vector<float> reference, fixed, logits, h;
  std::vector<double> total;  // [G]
};

Truth exact(const Query& query, const KvView& kv, int kv_head, const HeadTable& table, std::int64_t n) {
  const auto group = static_cast<std::size_t>(query.shape.group());
  const auto dim = static_cast<std::size_t>(query.shape.head_dim);
  const auto count = static_cast<std::size_t>(table.count);
  const auto stride = static_cast<std::size_t>(table.stride);
  Truth t;
  std::vector<float> score(group * static_cast<std::size_t>(n));
  score_list(query, kv, kv_head, {nullptr, 0, n}, score.data(), n);
  t.mass.assign(group * stride, 0);
  t.mean.assign(group * count * dim, 0);
  t.out.assign(group * dim, 0);
  t.weight.resize(score.size());
  t.fixed.assign(group, 0);
  t.total.assign(group, 0);
  for (std::size_t g = 0; g < group; ++g) {
    const float* s = score.data() + g * static_cast<std::size_t>(n);
    t.reference.push_back(*std::max_element(s, s + n));
    std::vector<double> cluster(count, 0);
    double fixed = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double w = std::exp(static_cast<double>(s[i]) - static_cast<double>(t.reference[g]));
      t.weight[g * static_cast<std::size_t>(n) + static_cast<std::size_t>(i)] = w;
      t.total[g] += w;
      const std::int64_t place = i - table.first_token;
      double* to = t.out.data() + g * dim;
      if (place >= 0 && place < table.token_count) {
        const auto c = static_cast<std::size_t>(table.column_of[static_cast<std::size_t>(place)]);
        cluster[c] += w;
        to = t.mean.data() + (g * count + c) * dim;
      } else {
        fixed += w;
      }
      const std::byte* v = row(kv, kv.v, i, kv_head);
      for (std::size_t j = 0; j < dim; ++j) to[j] += w * static_cast<double>(load_element(v, DType::f16, j));
    }
    t.fixed[g] = static_cast<float>(fixed);
    for (std::size_t c = 0; c < count; ++c) t.mass[g * stride + c] = static_cast<float>(cluster[c]);
  }
  t.logits.resize(group * stride);
  t.h.resize(group * table.parts.size());
  score_centroids(query, kv_head, table, 0, table.count, t.logits.data());
  half_variances(query, kv_head, table, t.h.data());
  return t;
}

struct Pipeline {
  const char* name;
  Metric metric;
  int iterations;
  int cluster_size;
  bool paper, spread, joint, verify, factor, truth;
  int tail;
};

struct Outcome {
  double units;
  std::vector<double> reached, error;  // of each head
};

// Output error with the clusters in `chosen` and a tail of `limit` clusters.
std::vector<double> errors(const Query& query, const HeadTable& table, const Truth& t, const std::vector<std::uint8_t>& chosen,
                           int limit, SelectScratch& scratch) {
  const int group = query.shape.group();
  const auto heads = static_cast<std::size_t>(group);
  const auto dim = static_cast<std::size_t>(query.shape.head_dim);
  const auto count = static_cast<std::size_t>(table.count);
  std::vector<float> out(heads * dim), sum(heads), top(heads), total(t.total.begin(), t.total.end());
  std::vector<double> full(heads * dim);
  for (std::size_t g = 0; g < heads; ++g) {
    double mass = static_cast<double>(t.fixed[g]);
    std::vector<double> o(t.out.begin() + static_cast<std::ptrdiff_t>(g * dim),
                          t.out.begin() + static_cast<std::ptrdiff_t>((g + 1) * dim));
    std::vector<double> all = o;
    for (std::size_t c = 0; c < count; ++c) {
      const double* m = t.mean.data() + (g * count + c) * dim;
      for (std::size_t j = 0; j < dim; ++j) all[j] += m[j];
      if (chosen[c] == 0) continue;
      mass += static_cast<double>(t.mass[g * static_cast<std::size_t>(table.stride) + c]);
      for (std::size_t j = 0; j < dim; ++j) o[j] += m[j];
    }
    sum[g] = static_cast<float>(mass);
    for (std::size_t j = 0; j < dim; ++j) {
      out[g * dim + j] = static_cast<float>(o[j]);
      full[g * dim + j] = all[j] / t.total[g];
    }
  }
  if (limit > 0) {
    std::vector<std::int32_t> list(count);
    std::vector<float> weights(heads * static_cast<std::size_t>(limit));
    const int n = choose_tail(table, group, t.logits.data(), t.h.data(), t.reference.data(), total.data(), chosen.data(), limit,
                              list.data(), weights.data(), scratch);
    add_tail(table, group, query.shape.v_head_dim, {list.data(), static_cast<std::size_t>(n)}, weights.data(), limit,
             {out.data(), top.data(), sum.data()});
  }
  std::vector<double> error;
  for (std::size_t g = 0; g < heads; ++g) {
    double off = 0, size = 0;
    for (std::size_t j = 0; j < dim; ++j) {
      const double o = static_cast<double>(out[g * dim + j]) / static_cast<double>(sum[g]);
      off += (o - full[g * dim + j]) * (o - full[g * dim + j]);
      size += full[g * dim + j] * full[g * dim + j];
    }
    error.push_back(std::sqrt(off / size));
  }
  return error;
}

Outcome run_clusters(const Pipeline& p, const Query& query, const HeadTable& table, const Truth& t, double target,
                     SelectScratch& scratch) {
  const int group = query.shape.group();
  const auto heads = static_cast<std::size_t>(group);
  const auto stride = static_cast<std::size_t>(table.stride);
  std::vector<float> mass = t.mass;
  if (!p.truth) estimate_masses(table, group, t.logits.data(), p.spread ? t.h.data() : nullptr, t.reference.data(), mass.data());
  std::vector<std::uint8_t> chosen(stride, 0);
  std::vector<std::int32_t> list(stride);
  const std::vector<float> targets(heads, static_cast<float>(target));
  const int n =
      choose(table, group, mass.data(), t.fixed.data(), targets.data(), p.joint, chosen.data(), list.data(), nullptr, scratch);
  if (p.verify) {
    std::vector<float> factor(heads, 1.0f);
    if (p.factor)
      tail_factors(table, group, mass.data(), t.mass.data(), {list.data(), static_cast<std::size_t>(n)}, factor.data(), scratch);
    for (std::size_t g = 0; g < heads; ++g) {
      for (std::size_t c = 0; c < stride; ++c)
        mass[g * stride + c] = chosen[c] != 0 ? t.mass[g * stride + c] : mass[g * stride + c] * factor[g];
    }
    choose(table, group, mass.data(), t.fixed.data(), targets.data(), p.joint, chosen.data(), list.data(), nullptr, scratch);
  }
  const double dim = query.shape.head_dim;
  Outcome out{
      table.count * (dim + 6) / (4 * dim) + (p.tail > 0 ? p.tail / 4.0 : 0.0), {}, {}};  // int8 centroid, scale, spread, size
  for (int c = 0; c < table.count; ++c)
    out.units += chosen[static_cast<std::size_t>(c)] != 0 ? static_cast<double>(table.size[static_cast<std::size_t>(c)]) : 0.0;
  for (std::size_t g = 0; g < heads; ++g) {
    double held = static_cast<double>(t.fixed[g]);
    for (std::size_t c = 0; c < stride; ++c) held += chosen[c] != 0 ? static_cast<double>(t.mass[g * stride + c]) : 0.0;
    out.reached.push_back(held / t.total[g]);
  }
  out.error = errors(query, table, t, chosen, p.tail, scratch);
  return out;
}

Outcome run_paper(const Query& query, const KvView& kv, int kv_head, const HeadTable& table, const Truth& t, double target,
                  std::int64_t n, SelectScratch& scratch) {
  const int group = query.shape.group();
  const auto heads = static_cast<std::size_t>(group);
  Options options = paper_options();
  options.mass = static_cast<float>(target);
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(kv.tokens / 64 + 1), 0);
  std::vector<std::int64_t> budget(heads);
  std::vector<float> estimated(heads);
  choose_paper(query, kv, kv_head, table, t.logits.data(), t.fixed.data(), t.reference.data(), options, bits.data(),
               budget.data(), estimated.data(), nullptr, scratch);
  const auto marked = [&](std::int64_t i) { return (bits[static_cast<std::size_t>(i / 64)] >> (i % 64) & 1) != 0; };
  std::set<std::int64_t> wasted;  // sampled and not chosen
  const FitPlaces places = fit_places(table.token_count, options);
  for (std::size_t g = 0; g < heads; ++g) {
    std::vector<int> order(static_cast<std::size_t>(table.count));
    std::iota(order.begin(), order.end(), 0);
    const float* logits = t.logits.data() + g * static_cast<std::size_t>(table.stride);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    std::int64_t place = 0;
    for (const int c : order) {
      for (const std::int32_t token : table.tokens[static_cast<std::size_t>(c)]) {
        const bool sampled = place < places.head || (place >= places.first_begin && place < places.first_end) ||
                             (place >= places.second_begin && place < places.second_end);
        if (sampled && !marked(token)) wasted.insert(token);
        ++place;
      }
    }
  }
  const double dim = query.shape.head_dim;
  Outcome out{table.count * (2 * dim + 4) / (4 * dim) + 0.5 * static_cast<double>(wasted.size()), {}, {}};
  for (std::int64_t i = 0; i < table.token_count; ++i) out.units += marked(table.first_token + i) ? 1 : 0;
  for (std::size_t g = 0; g < heads; ++g) {
    double held = static_cast<double>(t.fixed[g]);
    for (std::int64_t i = 0; i < table.token_count; ++i) {
      if (marked(table.first_token + i))
        held += t.weight[g * static_cast<std::size_t>(n) + static_cast<std::size_t>(table.first_token + i)];
    }
    out.reached.push_back(held / t.total[g]);
  }
  return out;
}

struct Sums {
  double units = 0, ok = 0, deficit = 0, error = 0, steps = 0, heads = 0;
  void add(const Outcome& o, double mass) {
    units += o.units;
    steps += 1;
    for (const double r : o.reached) {
      ok += r >= mass - 1e-9 ? 1 : 0;
      deficit += std::max(mass - r, 0.0);
      heads += 1;
    }
    for (const double e : o.error) error += e;
  }
};

// Units where ok reaches .95 as the margin shrinks, between the margins by interpolation; -1: never.
double units_at_95(const std::map<double, Sums, std::greater<>>& by_margin) {
  double best = -1, units = 0;
  for (const auto& [margin, s] : by_margin) {
    const double ok = s.ok / s.heads;
    const double u = s.units / s.steps;
    if (ok >= .95) return best < 0 ? u : units + (u - units) * (.95 - best) / (ok - best);
    if (ok > best || best < 0) best = std::max(best, ok);
    units = u;
  }
  return -1;
}

std::shared_ptr<const Segment> cluster(Team& team, const program::Capture& capture, int l, const Pipeline& p) {
  const program::CaptureInfo& info = capture.info();
  const Shape& shape = info.shape;
  std::vector<MetricSpace> metrics;
  for (int h = 0; h < shape.kv_heads; ++h) {
    QueryMoment moment(shape.head_dim);
    moment.add(capture.prompt_q(l) + static_cast<std::int64_t>(h) * shape.group() * shape.head_dim, info.window, shape.group(),
               capture.token_stride(), shape.head_dim);
    metrics.push_back(make_metric(p.metric, moment, info.rotary, 0.1f));
  }
  return build_segment(team, capture.kv(l, info.prompt_tokens), kSinks, info.prompt_tokens - kRecent, metrics,
                       {p.cluster_size, p.iterations, !p.paper, 1});
}

// name, metric, iterations, size, paper, spread, joint, verify, factor, truth, tail
const std::vector<Pipeline> kPipelines = {
    {"paper: L2 x10, a/x + b, union, f16", Metric::l2, 10, 16, true, false, false, false, false, false, 0},
    {"L2 x10, spread, union", Metric::l2, 10, 16, false, true, false, false, false, false, 0},
    {"query metric x3, spread, union", Metric::query, 3, 16, false, true, false, false, false, false, 0},
    {"A, size 16", Metric::query, 3, 16, false, true, true, true, true, false, 0},
    {"bound: true cluster masses", Metric::query, 3, 16, false, true, true, false, false, true, 0},
    {"centroid only, verify", Metric::query, 3, 16, false, false, true, true, false, false, 0},
    {"pooled, no verify", Metric::query, 3, 16, false, true, true, false, false, false, 0},
    {"pooled, verify, no tail factor", Metric::query, 3, 16, false, true, true, true, false, false, 0},
    {"A, size 8", Metric::query, 3, 8, false, true, true, true, true, false, 0},
    {"A, size 32", Metric::query, 3, 32, false, true, true, true, true, false, 0},
    {"A, size 64", Metric::query, 3, 64, false, true, true, true, true, false, 0},
    {"A + tail of 128, size 16", Metric::query, 3, 16, false, true, true, true, true, false, 128},
    {"A + tail of 128, size 32", Metric::query, 3, 32, false, true, true, true, true, false, 128},
};

using ByMargin = std::map<double, Sums, std::greater<>>;

// One step of one KV head, all masses and margins.
void study_step(const Pipeline& p, const Query& query, const KvView& kv, int kv_head, const HeadTable& table, std::int64_t n,
                std::map<double, ByMargin>& by_mass, SelectScratch& scratch) {
  const Truth truth = exact(query, kv, kv_head, table, n);
  for (const double mass : kMasses) {
    for (const double margin : kMargins) {
      const double target = 1 - margin * (1 - mass);
      by_mass[mass][margin].add(p.paper ? run_paper(query, kv, kv_head, table, truth, target, n, scratch)
                                        : run_clusters(p, query, table, truth, target, scratch),
                                mass);
    }
  }
}

}  // namespace

void study_estimation(const program::Capture& capture, int every) {
  const auto team = make_thread_team(2);
  const program::CaptureInfo& info = capture.info();
  SelectScratch scratch;
  std::vector<std::map<double, ByMargin>> sums(kPipelines.size());
  for (int l = 0; l < info.layers; l += every) {
    std::map<std::string, std::shared_ptr<const Segment>> built;
    for (std::size_t i = 0; i < kPipelines.size(); ++i) {
      const Pipeline& p = kPipelines[i];
      auto& segment = built[std::to_string(static_cast<int>(p.metric)) + ":" + std::to_string(p.iterations) + ":" +
                            std::to_string(p.cluster_size) + (p.paper ? "f" : "i")];
      if (segment == nullptr) segment = cluster(*team, capture, l, p);
      for (int h = 0; h < info.shape.kv_heads; ++h) {
        const HeadTable table = make_table(std::span(&segment, 1), h);
        for (int s = 0; s < std::min(kSteps, info.steps); ++s) {
          const int step = (2 * s + 1) * info.steps / (2 * std::min(kSteps, info.steps));
          const Query query{capture.q(step, l).data(), info.shape, info.params};
          study_step(p, query, capture.kv(l, info.tokens()), h, table, info.prompt_tokens + step + 1, sums[i], scratch);
        }
      }
    }
    std::fprintf(stderr, "layer %d done\n", l);
  }
  for (const double mass : kMasses) {
    std::printf("\nP = %.2f\n| pipeline | units | ok | deficit | error | u95 |\n|---|---|---|---|---|---|\n", mass);
    for (std::size_t i = 0; i < kPipelines.size(); ++i) {
      const ByMargin& by_margin = sums[i].at(mass);
      const Sums& s = by_margin.at(1.0);
      std::printf("| %s | %.0f | %.3f | %.4f | ", kPipelines[i].name, s.units / s.steps, s.ok / s.heads, s.deficit / s.heads);
      kPipelines[i].paper ? std::printf("- | ") : std::printf("%.3f | ", s.error / s.heads);  // not computed for the paper's
      std::printf("%.0f |\n", units_at_95(by_margin));
    }
  }
}

}  // namespace tactic::bench
