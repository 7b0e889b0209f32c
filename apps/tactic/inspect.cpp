// What a method attends to on a capture: budgets, attended tokens, true mass.
#include "inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/team.h"
#include "interrupt.h"
#include "progress.h"
#include "sequence/sequence.h"

namespace tactic::program {
namespace {

bool has_bit(std::span<const std::uint64_t> bits, std::int64_t token) {
  return ((bits[static_cast<std::size_t>(token / 64)] >> (token % 64)) & 1u) != 0;
}

// One layer at a time: the keys in f32, a report's arrays, the counts by place.
class LayerInspector {
 public:
  LayerInspector(const Capture& capture, int layer, Inspection& into)
      : capture_(capture),
        info_(capture.info()),
        layer_(layer),
        into_(into),
        words_(static_cast<std::size_t>(info_.tokens() + 63) / 64) {
    attended_.resize(static_cast<std::size_t>(info_.shape.kv_heads));
    estimated_.resize(static_cast<std::size_t>(info_.shape.q_heads));
    budget_.resize(estimated_.size());
    bits_.resize(attended_.size() * words_);
    out_.resize(estimated_.size() * static_cast<std::size_t>(info_.shape.v_head_dim));
    load_keys();
  }

  void step(Team& team, Workspace& workspace, const Sequence& sequence, int step);

 private:
  void load_keys();
  void count_places(std::int64_t context, std::size_t words);
  double true_mass(int head, std::span<const float> q, std::span<const std::uint64_t> bits, std::int64_t context) const;

  const Capture& capture_;
  const CaptureInfo& info_;
  int layer_;
  Inspection& into_;
  std::size_t words_;
  std::vector<std::int64_t> attended_, budget_;
  std::vector<float> estimated_, out_, keys_;  // keys [kv_heads, tokens, head_dim]
  std::vector<std::uint64_t> bits_;
};

void LayerInspector::load_keys() {
  const KvView kv = capture_.kv(layer_, info_.tokens());
  const auto dim = static_cast<std::size_t>(info_.shape.head_dim);
  keys_.reserve(static_cast<std::size_t>(info_.shape.kv_heads) * static_cast<std::size_t>(info_.tokens()) * dim);
  for (int head = 0; head < info_.shape.kv_heads; ++head) {
    for (int token = 0; token < info_.tokens(); ++token) {
      const std::byte* key = row(kv, kv.k, token, head);
      for (std::size_t i = 0; i < dim; ++i) keys_.push_back(load_element(key, kv.k.type, i));
    }
  }
}

double LayerInspector::true_mass(int head, std::span<const float> q, std::span<const std::uint64_t> bits,
                                 std::int64_t context) const {
  const auto dim = static_cast<std::size_t>(info_.shape.head_dim);
  const int kv_head = head / info_.shape.group();
  const float* key = keys_.data() + static_cast<std::size_t>(kv_head) * static_cast<std::size_t>(info_.tokens()) * dim;
  std::vector<double> logits(static_cast<std::size_t>(context));
  for (double& logit : logits) {
    for (std::size_t i = 0; i < dim; ++i) logit += static_cast<double>(q[i]) * static_cast<double>(key[i]);
    logit *= static_cast<double>(info_.params.scale);
    const auto cap = static_cast<double>(info_.params.softcap);
    if (cap > 0) logit = cap * std::tanh(logit / cap);
    key += dim;
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  double all = 0;
  double chosen = 0;
  for (std::int64_t token = 0; token < context; ++token) {
    const double weight = std::exp(logits[static_cast<std::size_t>(token)] - top);
    all += weight;
    if (has_bit(bits, token)) chosen += weight;
  }
  return chosen / all;
}

void LayerInspector::count_places(std::int64_t context, std::size_t words) {
  const double weight = 1.0 / (static_cast<double>(info_.steps) * info_.shape.kv_heads);
  double* counts = into_.place_share.data() + static_cast<std::ptrdiff_t>(layer_) * kPlaces;
  for (int place = 0; place < kPlaces; ++place) {
    const std::int64_t begin = context * place / kPlaces;
    const std::int64_t end = context * (place + 1) / kPlaces;
    std::int64_t count = 0;
    for (std::size_t head = 0; head < attended_.size(); ++head) {
      const auto bits = std::span(bits_).subspan(head * words, words);
      for (std::int64_t token = begin; token < end; ++token) count += has_bit(bits, token) ? 1 : 0;
    }
    if (end > begin) counts[place] += weight * static_cast<double>(count) / static_cast<double>(end - begin);
  }
}

void LayerInspector::step(Team& team, Workspace& workspace, const Sequence& sequence, int step) {
  const std::int64_t context = info_.prompt_tokens + step + 1;
  const KvView kv = capture_.kv(layer_, context);
  const auto q = capture_.q(step, layer_);
  const auto words = static_cast<std::size_t>((context + 63) / 64);
  StepReport report;
  report.attended = attended_;
  report.estimated_mass = estimated_;
  report.budget = budget_;
  report.token_bits = std::span(bits_).first(attended_.size() * words);
  std::fill(bits_.begin(), bits_.end(), 0);
  const Status status = sequence.attend(team, workspace, 0, q.data(), kv, nullptr, out_.data(), nullptr, &report);
  if (status != Status::ok) {
    throw Error(status,
                fmt::format("layer {} step {} of the capture has values that are not finite: record it again", layer_, step));
  }
  const std::size_t first = into_.rows.size();
  into_.rows.resize(first + static_cast<std::size_t>(info_.shape.q_heads));
  team.run([&](Worker& worker) {
    const auto [begin, end] = worker.share(info_.shape.q_heads);
    for (auto head = static_cast<int>(begin); head < static_cast<int>(end); ++head) {
      const auto kv_head = static_cast<std::size_t>(head / info_.shape.group());
      const auto at = static_cast<std::size_t>(head);
      const auto head_q = q.subspan(at * static_cast<std::size_t>(info_.shape.head_dim));
      const auto bits = std::span<const std::uint64_t>(bits_).subspan(kv_head * words, words);
      into_.rows[first + at] = {.layer = layer_,
                                .head = head,
                                .step = step,
                                .context = context,
                                .attended = attended_[kv_head],
                                .budget = budget_[at],
                                .estimated_mass = static_cast<double>(estimated_[at]),
                                .true_mass = true_mass(head, head_q, bits, context)};
    }
  });
  count_places(context, words);
}

}  // namespace

Inspection inspect(const Capture& capture, const Options& options, int threads) {
  const CaptureInfo& info = capture.info();
  Inspection inspection{.info = info, .options = options, .rows = {}, .place_share = {}, .margin = {}, .cluster_seconds = 0};
  inspection.place_share.assign(static_cast<std::size_t>(info.layers) * kPlaces, 0.0);
  const auto team = make_thread_team(threads);
  const auto workspace = make_workspace();
  Progress progress("inspect", static_cast<double>(info.layers) * info.steps, "steps");
  for (int layer = 0; layer < info.layers; ++layer) {
    // Layers know nothing of each other: each is a sequence of its own, gone before the next one.
    Sequence sequence({.layers = 1, .shape = info.shape, .params = info.params, .rotary = info.rotary, .options = options});
    sequence.observe(0, capture.prompt_q(layer), info.window, capture.token_stride(), info.shape.head_dim);
    inspection.cluster_seconds += sequence.update(*team, *workspace, 0, capture.kv(layer, info.prompt_tokens), true).seconds;
    const std::vector<float>& margin = sequence.layer(0).margin;
    inspection.margin.insert(inspection.margin.end(), margin.begin(), margin.end());
    LayerInspector inspector(capture, layer, inspection);
    for (int step = 0; step < info.steps; ++step) {
      if (interrupted()) throw Interrupted{};
      inspector.step(*team, *workspace, sequence, step);
      progress.update(static_cast<double>(layer) * info.steps + step + 1);
    }
  }
  progress.finish();
  return inspection;
}

float Inspection::margin_of(const HeadStep& row) const {
  if (margin.empty()) return 1;
  return margin[static_cast<std::size_t>(row.layer * info.shape.kv_heads + row.head / info.shape.group())];
}

PromiseSummary summarise_promise(const Inspection& inspection, int layer) {
  PromiseSummary sum;
  const auto heads = static_cast<std::size_t>(inspection.info.shape.kv_heads);
  const std::span<const float> all(inspection.margin);
  for (const float margin : layer < 0 || all.empty() ? all : all.subspan(static_cast<std::size_t>(layer) * heads, heads)) {
    ++sum.heads;
    if (margin < 0) {
      ++sum.dense;
      continue;
    }
    sum.with_margin += margin < 1 ? 1 : 0;
    sum.mean_margin += static_cast<double>(margin);
  }
  if (sum.heads > sum.dense) sum.mean_margin /= sum.heads - sum.dense;
  return sum;
}

HeadSummary summarise(const Inspection& inspection, int layer, int head) {
  HeadSummary sum;
  const double mass = static_cast<double>(inspection.options.mass);
  for (const HeadStep& row : inspection.rows) {
    if ((layer >= 0 && row.layer != layer) || (head >= 0 && row.head != head)) continue;
    ++sum.count;
    sum.attended += static_cast<double>(row.attended);
    sum.attended_share += static_cast<double>(row.attended) / static_cast<double>(row.context);
    sum.budget += static_cast<double>(row.budget);
    sum.estimated_mass += row.estimated_mass;
    sum.true_mass += row.true_mass;
    sum.worst_mass = std::min(sum.worst_mass, row.true_mass);
    // A dense step sums to 1 only up to rounding.
    if (row.true_mass >= mass - 1e-12) sum.success += 1;
  }
  if (sum.count == 0) return sum;
  const auto count = static_cast<double>(sum.count);
  for (double* value : {&sum.attended, &sum.attended_share, &sum.budget, &sum.estimated_mass, &sum.true_mass, &sum.success})
    *value /= count;
  return sum;
}

std::string csv_of(const Inspection& inspection) {
  std::string text =
      "layer,query_head,step,context_tokens,attended_tokens,attended_share,budget_tokens,estimated_mass,true_mass,success,"
      "margin\n";
  const double mass = static_cast<double>(inspection.options.mass);
  for (const HeadStep& row : inspection.rows) {
    fmt::format_to(std::back_inserter(text), "{},{},{},{},{},{:.6f},{},{:.6f},{:.9f},{},{}\n", row.layer, row.head, row.step,
                   row.context, row.attended, static_cast<double>(row.attended) / static_cast<double>(row.context), row.budget,
                   row.estimated_mass, row.true_mass, row.true_mass >= mass - 1e-12 ? 1 : 0, inspection.margin_of(row));
  }
  return text;
}

}  // namespace tactic::program
