// A decode step from the references of the rooms: one thread, one KV head after the other, readable next to estimation.md.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "decode/decode.h"
#include "select/loss.h"

namespace tactic::reference {
namespace {

// Attention partials of one KV head's group, owned.
struct OwnedPartial {
  OwnedPartial(int group, int dim)
      : output(static_cast<std::size_t>(group * dim)), maximum(static_cast<std::size_t>(group)), sum(maximum.size()) {}
  Partial view() { return {output.data(), maximum.data(), sum.data()}; }
  std::vector<float> output, maximum, sum;
};

std::vector<std::int32_t> tokens_of(const HeadTable& table, std::span<const std::int32_t> clusters) {
  std::vector<std::int32_t> ids;
  for (const std::int32_t c : clusters) {
    const auto tokens = table.tokens[static_cast<std::size_t>(c)];
    ids.insert(ids.end(), tokens.begin(), tokens.end());
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

// One KV head of a sparse step.
class HeadStep {
 public:
  HeadStep(const Query& query, const KvView& kv, const LayerIndex& index, const Options& options, int kv_head)
      : query_(query),
        kv_(kv),
        index_(index),
        options_(options),
        head_(kv_head),
        table_(index.tables[static_cast<std::size_t>(kv_head)]),
        group_(query.shape.group()),
        total_(group_, query.shape.v_head_dim) {}

  // Leaves the unnormalised result in partial(), the attended tokens in attended().
  void run() {
    attend_fixed();
    const float margin = index_.margin.empty() ? 1.0f : index_.margin[static_cast<std::size_t>(head_)];
    if (margin < 0) {
      covered.assign(static_cast<std::size_t>(group_), 1.0f);
      std::vector<std::int32_t> all;
      for (std::int64_t t = index_.first(); t < index_.last(); ++t) all.push_back(static_cast<std::int32_t>(t));
      attend(all, nullptr);
      return;
    }
    logits_.assign(static_cast<std::size_t>(group_) * static_cast<std::size_t>(table_.stride), 0.0f);
    reference::score_centroids(query_, head_, table_, 0, table_.count, logits_.data());
    set_reference();
    covered.assign(static_cast<std::size_t>(group_), 0.0f);
    budget.assign(static_cast<std::size_t>(group_), 0);
    if (options_.method == Method::paper) {
      run_paper();
    } else {
      run_tactic(margin);
    }
  }

  Partial partial() { return total_.view(); }
  const std::vector<std::int32_t>& attended() const { return attended_; }
  std::vector<float> covered;
  std::vector<std::int64_t> budget;
  std::int64_t sampled = 0;

 private:
  void attend_fixed() {
    std::vector<std::int32_t> ids;
    for (std::int64_t t = 0; t < index_.first(); ++t) ids.push_back(static_cast<std::int32_t>(t));
    for (std::int64_t t = index_.last(); t < kv_.tokens; ++t) ids.push_back(static_cast<std::int32_t>(t));
    reference::attend_list(query_, kv_, head_, {ids.data(), 0, static_cast<std::int64_t>(ids.size())}, total_.view(), nullptr, 0);
    attended_ = ids;
  }

  // Attends and merges; logits [group, ids.size()] or null.
  void attend(const std::vector<std::int32_t>& ids, std::vector<float>* logits) {
    OwnedPartial part(group_, query_.shape.v_head_dim);
    const auto count = static_cast<std::int64_t>(ids.size());
    if (logits != nullptr) logits->assign(static_cast<std::size_t>(group_) * ids.size(), 0.0f);
    reference::attend_list(query_, kv_, head_, {ids.data(), 0, count}, part.view(), logits != nullptr ? logits->data() : nullptr,
                           count);
    merge(total_.view(), part.view(), group_, query_.shape.v_head_dim);
    attended_.insert(attended_.end(), ids.begin(), ids.end());
  }

  void set_reference() {
    for (int g = 0; g < group_; ++g) {
      float top = total_.maximum[static_cast<std::size_t>(g)];
      for (int c = 0; c < table_.count; ++c) top = std::max(top, logits_[at(g, c)]);
      reference_.push_back(top);
      const float sum = total_.sum[static_cast<std::size_t>(g)];
      fixed_.push_back(sum > 0 ? sum * std::exp(total_.maximum[static_cast<std::size_t>(g)] - top) : 0.0f);
    }
  }

  void run_paper() {
    std::vector<std::uint64_t> bits(static_cast<std::size_t>((kv_.tokens + 63) / 64), 0);
    PaperReport report;
    reference::choose_paper(query_, kv_, head_, table_, logits_.data(), fixed_.data(), reference_.data(), options_, bits.data(),
                            budget.data(), covered.data(), &report);
    sampled = report.sampled;
    std::vector<std::int32_t> ids;
    for (std::int64_t t = 0; t < kv_.tokens; ++t) {
      if ((bits[static_cast<std::size_t>(t / 64)] >> (t % 64) & 1) != 0) ids.push_back(static_cast<std::int32_t>(t));
    }
    attend(ids, nullptr);
  }

  // h_g per part: scale^2 q^T S q / (2 t).
  std::vector<float> half_variances_of() const {
    std::vector<float> half;
    const int d = query_.shape.head_dim;
    for (int g = 0; g < group_; ++g) {
      const float* q = query_.q + static_cast<std::int64_t>(head_ * group_ + g) * d;
      for (const HeadTable::Part& part : table_.parts) {
        double form = 0;
        for (int i = 0; i < d; ++i) {
          for (int j = 0; j < d; ++j)
            form += static_cast<double>(q[i]) * part.clusters->covariance[static_cast<std::size_t>(i * d + j)] * q[j];
        }
        const double scale = query_.params.scale;
        const double trace = part.clusters->mean_spread;
        half.push_back(trace > 0 ? static_cast<float>(scale * scale * form / (2 * trace)) : 0.0f);
      }
    }
    return half;
  }

  void run_tactic(float margin) {
    const std::vector<float> half = half_variances_of();
    const float* h = options_.spread ? half.data() : nullptr;
    const std::vector<float> target(static_cast<std::size_t>(group_), 1 - margin * (1 - options_.mass));
    std::vector<float> mass(logits_.size(), 0.0f);
    reference::estimate_masses(table_, group_, logits_.data(), h, reference_.data(), mass.data(), query_.params.softcap);
    std::vector<std::uint8_t> chosen(static_cast<std::size_t>(table_.stride), 0);
    std::vector<std::int32_t> list(static_cast<std::size_t>(table_.stride), 0);
    if (by_loss()) {
      ripple_.assign(mass.size(), 0.0f);
      reference::representation_ripple(table_, group_, logits_.data(), options_.tail_clusters > 0 ? h : nullptr, ripple_.data(),
                                       query_.params.softcap);
    }
    const int first = choose_clusters(target, mass, chosen, list.data());
    std::vector<float> logits;
    const std::span<const std::int32_t> first_list(list.data(), static_cast<std::size_t>(first));
    const std::vector<std::int32_t> ids = tokens_of(table_, first_list);
    attend(ids, &logits);
    if (options_.verify && first > 0) verify(first_list, ids, logits, target, mass, chosen, list.data() + first);
    if (options_.tail_clusters > 0) add_tail_of(h, mass, chosen);
  }

  bool by_loss() const { return options_.goal == Goal::error && !options_.promise; }

  int choose_clusters(const std::vector<float>& target, const std::vector<float>& mass, std::vector<std::uint8_t>& chosen,
                      std::int32_t* list) {
    if (by_loss()) {
      return reference::choose_by_loss(table_, group_, mass.data(), ripple_.data(), fixed_.data(), loss_per_row(options_.mass),
                                       chosen.data(), list, covered.data());
    }
    return reference::choose(table_, group_, mass.data(), fixed_.data(), target.data(), options_.joint, chosen.data(), list,
                             covered.data());
  }

  void verify(std::span<const std::int32_t> first, const std::vector<std::int32_t>& ids, const std::vector<float>& logits,
              const std::vector<float>& target, std::vector<float>& mass, std::vector<std::uint8_t>& chosen, std::int32_t* list) {
    std::vector<float> exact(mass.size(), 0.0f);
    for (int g = 0; g < group_; ++g) {
      for (const std::int32_t c : first) {
        double sum = 0;
        for (const std::int32_t t : table_.tokens[static_cast<std::size_t>(c)]) {
          const auto i = std::lower_bound(ids.begin(), ids.end(), t) - ids.begin();
          sum += std::exp(static_cast<double>(logits[static_cast<std::size_t>(g) * ids.size() + static_cast<std::size_t>(i)]) -
                          reference_[static_cast<std::size_t>(g)]);
        }
        exact[at(g, c)] = static_cast<float>(sum);
      }
    }
    std::vector<float> factor(static_cast<std::size_t>(group_), 1.0f);
    if (options_.tail_factor) reference::tail_factors(table_, group_, mass.data(), exact.data(), first, factor.data());
    for (int g = 0; g < group_; ++g) {
      for (int c = 0; c < table_.count; ++c) mass[at(g, c)] *= factor[static_cast<std::size_t>(g)];
      for (const std::int32_t c : first) mass[at(g, c)] = exact[at(g, c)];
    }
    const int added = choose_clusters(target, mass, chosen, list);
    attend(tokens_of(table_, {list, static_cast<std::size_t>(added)}), nullptr);
  }

  void add_tail_of(const float* h, const std::vector<float>& mass, const std::vector<std::uint8_t>& chosen) {
    std::vector<float> totals;
    for (int g = 0; g < group_; ++g) {
      double sum = fixed_[static_cast<std::size_t>(g)];
      for (int c = 0; c < table_.count; ++c) sum += mass[at(g, c)];
      totals.push_back(static_cast<float>(sum));
    }
    std::vector<std::int32_t> list(static_cast<std::size_t>(options_.tail_clusters));
    std::vector<float> weights(static_cast<std::size_t>(group_ * options_.tail_clusters));
    const int count = reference::choose_tail(table_, group_, logits_.data(), h, reference_.data(), totals.data(), chosen.data(),
                                             options_.tail_clusters, list.data(), weights.data(), query_.params.softcap,
                                             by_loss() ? loss_per_row(options_.mass) : 0.0f);
    OwnedPartial tail(group_, query_.shape.v_head_dim);
    for (int g = 0; g < group_; ++g) {
      tail.maximum[static_cast<std::size_t>(g)] = reference_[static_cast<std::size_t>(g)];
      for (int i = 0; i < count; ++i)
        add_mean_value(tail, g, list[static_cast<std::size_t>(i)],
                       weights[static_cast<std::size_t>(g * options_.tail_clusters + i)]);
    }
    merge(total_.view(), tail.view(), group_, query_.shape.v_head_dim);
  }

  void add_mean_value(OwnedPartial& tail, int g, int column, float weight) const {
    const HeadTable::Part& part = table_.parts[static_cast<std::size_t>(table_.part_of[static_cast<std::size_t>(column)])];
    const auto c = static_cast<std::size_t>(column - part.first);
    const auto dim = static_cast<std::size_t>(query_.shape.v_head_dim);
    for (std::size_t i = 0; i < dim; ++i) {
      tail.output[static_cast<std::size_t>(g) * dim + i] +=
          weight * part.clusters->mean_v_scale[c] * static_cast<float>(part.clusters->mean_v[c * dim + i]);
    }
    tail.sum[static_cast<std::size_t>(g)] += weight;
  }

  std::size_t at(int g, int c) const {
    return static_cast<std::size_t>(g) * static_cast<std::size_t>(table_.stride) + static_cast<std::size_t>(c);
  }

  const Query& query_;
  const KvView& kv_;
  const LayerIndex& index_;
  const Options& options_;
  int head_;
  const HeadTable& table_;
  int group_;
  OwnedPartial total_;
  std::vector<std::int32_t> attended_;
  std::vector<float> logits_;     // [group, stride]
  std::vector<float> reference_;  // [group]
  std::vector<float> fixed_;      // [group]
  std::vector<float> ripple_;     // [group, stride]
};

void report_head(HeadStep& head, const Query& query, const KvView& kv, int kv_head, StepReport& report) {
  const int group = query.shape.group();
  if (!report.attended.empty())
    report.attended[static_cast<std::size_t>(kv_head)] = static_cast<std::int64_t>(head.attended().size());
  for (int g = 0; g < group; ++g) {
    const auto q = static_cast<std::size_t>(kv_head * group + g);
    if (!report.estimated_mass.empty()) report.estimated_mass[q] = head.covered[static_cast<std::size_t>(g)];
    if (!report.budget.empty() && !head.budget.empty()) report.budget[q] = head.budget[static_cast<std::size_t>(g)];
  }
  if (report.token_bits.empty()) return;
  const std::int64_t words = (kv.tokens + 63) / 64;
  std::uint64_t* bits = report.token_bits.data() + kv_head * words;
  std::fill_n(bits, words, 0);
  for (const std::int32_t t : head.attended()) bits[t / 64] |= std::uint64_t{1} << (t % 64);
}

}  // namespace

Status decode_step(const Query& query, const KvView& kv, const LayerIndex* index, const Options& options, float* out, float* lse,
                   StepReport* report) {
  const Shape& shape = query.shape;
  const int group = shape.group();
  const bool sparse = index != nullptr && !index->segments.empty() && options.method != Method::full && options.mass < 1 &&
                      kv.tokens >= options.min_context;
  OwnedPartial total(shape.q_heads, shape.v_head_dim);
  if (!sparse) reference::attend_all(query, kv, {nullptr, 0, kv.tokens}, total.view());
  for (int h = 0; sparse && h < shape.kv_heads; ++h) {
    HeadStep head(query, kv, *index, options, h);
    head.run();
    const Partial part = head.partial();
    std::copy_n(part.output, group * shape.v_head_dim,
                total.output.data() + static_cast<std::ptrdiff_t>(h) * group * shape.v_head_dim);
    std::copy_n(part.maximum, group, total.maximum.data() + static_cast<std::ptrdiff_t>(h) * group);
    std::copy_n(part.sum, group, total.sum.data() + static_cast<std::ptrdiff_t>(h) * group);
    if (report != nullptr) report_head(head, query, kv, h, *report);
  }
  normalise(total.view(), shape.q_heads, shape.v_head_dim, query.params.sink_logits, out, lse);
  for (int i = 0; i < shape.q_heads * shape.v_head_dim; ++i) {
    if (!std::isfinite(out[i])) return Status::non_finite;
  }
  return Status::ok;
}

}  // namespace tactic::reference
