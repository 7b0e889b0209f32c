// How far each arm's next-token distributions are from full attention's, on the text's own tokens (Figures 3, 5, 9, sweeps).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "decode/decode.h"
#include "eval.h"
#include "eval/statistics.h"
#include "eval_capture.h"
#include "eval_windows.h"
#include "kl.h"

namespace tactic::program {

using eval::Arm;
using eval::Json;

namespace {

constexpr std::size_t kTop = 50;  // evaluation: KL over the reference's 50 likeliest tokens, renormalised (the paper's top-k)

constexpr int kDigits = 6;  // of single steps and heads

// KL over the reference's likeliest `kTop` tokens, both renormalised there.
double top_divergence(std::span<const float> reference, std::span<const float> logits) {
  std::vector<std::int32_t> order(reference.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(kTop, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      const float x = reference[static_cast<std::size_t>(a)];
                      const float y = reference[static_cast<std::size_t>(b)];
                      return x > y || (x == y && a < b);
                    });
  std::vector<float> p(count);
  std::vector<float> q(count);
  for (std::size_t i = 0; i < count; ++i) {
    p[i] = reference[static_cast<std::size_t>(order[i])];
    q[i] = logits[static_cast<std::size_t>(order[i])];
  }
  return kl_divergence(p, q);
}

// |o - o_full| of every query head of the rows that pass, o_full from the row's own query and cache.
class ErrorWatch {
 public:
  void see(const tactic_llama_trace& row);
  Json json() const;

 private:
  std::unique_ptr<Team> team_ = make_serial_team();
  WorkspacePtr workspace_ = make_workspace();
  std::vector<float> full_;
  std::vector<double> errors_, relative_;
};

void ErrorWatch::see(const tactic_llama_trace& row) {
  const KvView kv = view_of(row);
  const Shape shape{row.q_heads, row.kv_heads, row.head_dim, row.v_head_dim};
  Options options;
  options.method = Method::full;
  const auto dim = static_cast<std::size_t>(row.v_head_dim);
  full_.resize(static_cast<std::size_t>(row.q_heads) * dim);
  decode_step(*team_, *workspace_, {row.q, shape, {.scale = row.scale}}, kv, nullptr, options, full_.data(), nullptr, nullptr);
  for (std::size_t at = 0; at < full_.size(); at += dim) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = at; i < at + dim; ++i) {
      const double d = static_cast<double>(row.out[i]) - static_cast<double>(full_[i]);
      difference += d * d;
      norm += static_cast<double>(full_[i]) * static_cast<double>(full_[i]);
    }
    errors_.push_back(std::sqrt(difference));
    relative_.push_back(norm > 0 ? std::sqrt(difference / norm) : 0);
  }
}

constexpr std::size_t kScatter = 400;  // rows that are kept one by one, evenly spaced

Json ErrorWatch::json() const {
  Json json = {{"rows", errors_.size()},
               {"mean", eval::mean_of(errors_)},
               {"variance", eval::variance_of(errors_)},
               {"p95", eval::quantile_of(errors_, 0.95)},
               {"largest", eval::quantile_of(errors_, 1)},
               {"relative_mean", eval::mean_of(relative_)},
               {"relative_p95", eval::quantile_of(relative_, 0.95)},
               {"scatter", Json::array()}};
  const std::size_t step = std::max<std::size_t>(1, errors_.size() / kScatter);
  for (std::size_t i = 0; i < errors_.size(); i += step) json["scatter"].push_back(eval::rounded(errors_[i], kDigits));
  return json;
}

// One window: the reference's logits, then every arm that is not in the journal yet.
class WindowRun {
 public:
  WindowRun(EvalRun& run, const Window& window) : run_(run), window_(window) {}
  void measure();

 private:
  Json config(const Arm& arm, double budget) const;
  void prepare();
  Json measure_arm(const Arm& arm, double budget);

  EvalRun& run_;
  const Window& window_;
  bool ready_ = false;
  double prefill_seconds_ = 0;
  std::vector<std::vector<float>> reference_;  // [steps, vocabulary]
};

Json WindowRun::config(const Arm& arm, double budget) const {
  Json config = run_.config_of(arm, budget);
  describe(window_, config);
  if (run_.number("error", 0) > 0) config["error"] = 1;
  config["tokens"] = hash_of(window_);
  return config;
}

// The engine's own attention: its logits are what all arms are compared with.
void WindowRun::prepare() {
  if (ready_) return;
  EvalEngine& engine = run_.engine();
  prefill_seconds_ = engine.read(window_.prompt);
  Arm stock;
  stock.method = "stock";
  engine.start(stock, 0);
  for (const Token token : window_.steps) {
    const auto logits = engine.step(token);
    reference_.emplace_back(logits.begin(), logits.end());
  }
  ready_ = true;
}

Json WindowRun::measure_arm(const Arm& arm, double budget) {
  EvalEngine& engine = run_.engine();
  std::vector<double> kl;
  std::vector<double> top;
  Json kl_list = Json::array();
  int agree = 0;
  ErrorWatch errors;
  const bool watched = run_.number("error", 0) > 0;
  if (watched) engine.watch([&](const tactic_llama_trace& row) { errors.see(row); }, false);
  engine.start(arm, budget);
  for (std::size_t step = 0; step < window_.steps.size(); ++step) {
    const auto logits = engine.step(window_.steps[step]);
    kl.push_back(kl_divergence(reference_[step], logits));
    kl_list.push_back(eval::rounded(kl.back(), kDigits));
    top.push_back(top_divergence(reference_[step], logits));
    agree += largest(reference_[step]) == largest(logits) ? 1 : 0;
  }
  Json result = json_of(engine.attended());
  if (watched) {
    engine.watch({}, false);
    result["error"] = errors.json();
  }
  result["kl_mean"] = eval::mean_of(kl);
  result["kl_top50_mean"] = eval::mean_of(top);
  result["top1"] = static_cast<double>(agree) / static_cast<double>(kl.size());
  result["kl"] = kl_list;
  result["prefill_seconds"] = prefill_seconds_;
  return result;
}

void WindowRun::measure() {
  std::map<std::string, Json> results;
  for (const Arm& arm : run_.arms()) {
    const double budget = EvalRun::budget_of(arm, results);
    const Json configuration = config(arm, budget);
    const Json* kept = run_.journal().find(eval::Journal::key_of(configuration));
    const bool measured = kept == nullptr;
    if (measured) {
      prepare();
      kept = &run_.keep(configuration, measure_arm(arm, budget));
    }
    results[arm.label] = *kept;
    run_.done(measured, fmt::format("{} {}: {}: KL {:.5f}, {:.0f} tokens, {:.1f}% of the bytes", window_.text, window_.number,
                                    arm.label, (*kept)["kl_mean"].get<double>(), (*kept)["kv_tokens"].get<double>(),
                                    100 * (*kept)["bytes_share"].get<double>()));
  }
}

}  // namespace

void run_closeness(EvalRun& run) {
  for (const Window& window : run.open_windows()) WindowRun(run, window).measure();
}

}  // namespace tactic::program
