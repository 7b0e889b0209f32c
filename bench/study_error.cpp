// What a method's rows buy: whole decode steps (the library's own, as the engine takes them) with P swept, units read against the
// distance of the output from that of dense attention.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/study.h"
#include "sequence/sequence.h"

namespace tactic::bench {
namespace {

constexpr int kSteps = 8;  // of a layer, evenly over those captured
constexpr float kMasses[] = {.35f, .5f, .65f, .75f, .85f, .9f, .95f, .975f};
constexpr int kSweep = std::size(kMasses);
constexpr double kErrors[] = {.10, .07, .05, .03, .02};

struct Way {
  std::string name;
  Options options;
};

std::vector<Way> ways() {
  std::vector<Way> all;
  const auto add = [&](const char* name, Options options) {
    options.min_context = 0;
    all.push_back({name, options});
  };
  add("paper", paper_options());
  for (const int size : {16, 32}) {
    Options mass;
    mass.goal = Goal::mass;
    mass.cluster_size = size;
    const std::string suffix = ", size " + std::to_string(size);
    mass.tail_clusters = 0;
    add(("A, no tail" + suffix).c_str(), mass);
    mass.tail_clusters = 128;
    add(("A, tail of 128" + suffix).c_str(), mass);
    mass.tail_clusters = 512;
    add(("A, tail of 512" + suffix).c_str(), mass);
    Options error;
    error.cluster_size = size;
    add(("goal error" + suffix).c_str(), error);
    error.verify = false;
    add(("goal error, no verify" + suffix).c_str(), error);
    error.verify = true;
    error.tail_clusters = 0;
    add(("goal error, no tail" + suffix).c_str(), error);
  }
  return all;
}

struct Sums {
  double units = 0, heads = 0, steps = 0;
  double error = 0, square = 0;  // relative error of a head's output
  double mass = 0, ok = 0;       // true mass on the attended tokens; share of heads where it reaches P
};

// Dense attention of one step, to judge the others by.
struct Truth {
  std::vector<float> out;      // [q_heads, v_head_dim]
  std::vector<double> weight;  // [q_heads, tokens], rows sum to 1
};

class ErrorStudy {
 public:
  explicit ErrorStudy(const program::Capture& capture)
      : capture_(capture), info_(capture.info()), ways_(ways()), sums_(ways_.size() * kSweep) {
    const auto& shape = info_.shape;
    out_.resize(static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.v_head_dim));
    bits_.resize(static_cast<std::size_t>(shape.kv_heads) * static_cast<std::size_t>((info_.tokens() + 63) / 64));
  }

  void layer(int layer) {
    std::vector<Truth> truths;
    std::vector<int> steps;
    for (int i = 0; i < std::min(kSteps, info_.steps); ++i) {
      steps.push_back((2 * i + 1) * info_.steps / (2 * std::min(kSteps, info_.steps)));
      truths.push_back(dense(layer, steps.back()));
    }
    for (std::size_t w = 0; w < ways_.size(); ++w) {
      Sequence sequence({1, info_.shape, info_.params, info_.rotary, ways_[w].options});
      sequence.observe(0, capture_.prompt_q(layer), info_.window, capture_.token_stride(), info_.shape.head_dim);
      sequence.update(*team_, *workspace_, 0, capture_.kv(layer, info_.prompt_tokens), true);
      for (int p = 0; p < kSweep; ++p) {
        for (std::size_t i = 0; i < steps.size(); ++i)
          step(sequence, layer, steps[i], kMasses[p], truths[i], sums_[w * kSweep + static_cast<std::size_t>(p)]);
      }
    }
  }

  void print() const;

 private:
  Truth dense(int layer, int step) {
    const std::int64_t n = info_.prompt_tokens + step + 1;
    const KvView kv = capture_.kv(layer, n);
    const Query query{capture_.q(step, layer).data(), info_.shape, info_.params};
    Options full;
    full.method = Method::full;
    Truth truth{.out = std::vector<float>(out_.size()), .weight = {}};
    decode_step(*team_, *workspace_, query, kv, nullptr, full, truth.out.data(), nullptr, nullptr);
    const int group = info_.shape.group();
    std::vector<float> logits(static_cast<std::size_t>(group) * static_cast<std::size_t>(n));
    for (int h = 0; h < info_.shape.kv_heads; ++h) {
      score_list(query, kv, h, {nullptr, 0, n}, logits.data(), n);
      for (int g = 0; g < group; ++g) {
        const float* row = logits.data() + g * n;
        const float top = *std::max_element(row, row + n);
        const std::size_t first = truth.weight.size();
        double sum = 0;
        for (std::int64_t t = 0; t < n; ++t) {
          truth.weight.push_back(std::exp(static_cast<double>(row[t]) - static_cast<double>(top)));
          sum += truth.weight.back();
        }
        for (std::size_t t = first; t < truth.weight.size(); ++t) truth.weight[t] /= sum;
      }
    }
    return truth;
  }

  void step(const Sequence& sequence, int layer, int step, float mass, const Truth& truth, Sums& sums) {
    const std::int64_t n = info_.prompt_tokens + step + 1;
    const auto words = static_cast<std::size_t>((n + 63) / 64);
    const Shape& shape = info_.shape;
    StepReport report;
    report.token_bits = std::span(bits_).first(static_cast<std::size_t>(shape.kv_heads) * words);
    sequence.attend(*team_, *workspace_, 0, capture_.q(step, layer).data(), capture_.kv(layer, n), nullptr, out_.data(), nullptr,
                    &report, mass);
    const LayerIndex& index = sequence.layer(0);
    const double always = static_cast<double>(n - (index.last() - index.first()));
    sums.units += report.bytes / (2.0 * (shape.head_dim + shape.v_head_dim)) / shape.kv_heads - always;
    sums.steps += 1;
    const auto dim = static_cast<std::size_t>(shape.v_head_dim);
    for (int head = 0; head < shape.q_heads; ++head) {
      const auto at = static_cast<std::size_t>(head);
      double off = 0, size = 0;
      for (std::size_t i = at * dim; i < (at + 1) * dim; ++i) {
        const auto is = static_cast<double>(truth.out[i]);
        off += (static_cast<double>(out_[i]) - is) * (static_cast<double>(out_[i]) - is);
        size += is * is;
      }
      const std::uint64_t* bits = bits_.data() + static_cast<std::size_t>(head / shape.group()) * words;
      double reached = 0;
      for (std::int64_t t = 0; t < n; ++t) {
        if ((bits[t / 64] >> (t % 64) & 1) != 0)
          reached += truth.weight[at * static_cast<std::size_t>(n) + static_cast<std::size_t>(t)];
      }
      sums.error += std::sqrt(off / size);
      sums.square += off / size;
      sums.mass += reached;
      sums.ok += reached >= static_cast<double>(mass) - 1e-6 ? 1 : 0;
      sums.heads += 1;
    }
  }

  const program::Capture& capture_;
  const program::CaptureInfo& info_;
  std::vector<Way> ways_;
  std::vector<Sums> sums_;  // [ways, masses]
  std::unique_ptr<Team> team_ = make_thread_team(2);
  WorkspacePtr workspace_ = make_workspace();
  std::vector<float> out_;
  std::vector<std::uint64_t> bits_;
};

// Units at which the mean error falls to `wanted`, by interpolation between the values of P; < 0: not within them.
double units_at(const Sums* sweep, double wanted) {
  for (int p = 1; p < kSweep; ++p) {
    const double before = sweep[p - 1].error / sweep[p - 1].heads;
    const double now = sweep[p].error / sweep[p].heads;
    if (before < wanted || now > wanted) continue;
    const double units = sweep[p - 1].units / sweep[p - 1].steps;
    return units + (sweep[p].units / sweep[p].steps - units) * (before - wanted) / (before - now);
  }
  return -1;
}

void ErrorStudy::print() const {
  std::printf("\nunits per KV head and step at mean error\n| method |");
  for (const double error : kErrors) std::printf(" %.2f |", error);
  std::printf("\n|---|---|---|---|---|---|\n");
  for (std::size_t w = 0; w < ways_.size(); ++w) {
    std::printf("| %s |", ways_[w].name.c_str());
    for (const double error : kErrors) {
      const double units = units_at(sums_.data() + w * kSweep, error);
      units < 0 ? std::printf(" - |") : std::printf(" %.0f |", units);
    }
    std::printf("\n");
  }
  for (int p = 0; p < kSweep; ++p) {
    std::printf("\nP = %.3f\n| method | units | error | rms | mass | ok |\n|---|---|---|---|---|---|\n",
                static_cast<double>(kMasses[p]));
    for (std::size_t w = 0; w < ways_.size(); ++w) {
      const Sums& s = sums_[w * kSweep + static_cast<std::size_t>(p)];
      std::printf("| %s | %.0f | %.4f | %.4f | %.3f | %.3f |\n", ways_[w].name.c_str(), s.units / s.steps, s.error / s.heads,
                  std::sqrt(s.square / s.heads), s.mass / s.heads, s.ok / s.heads);
    }
  }
}

}  // namespace

void study_error(const program::Capture& capture, int every) {
  ErrorStudy study(capture);
  for (int layer = 0; layer < capture.info().layers; layer += every) {
    study.layer(layer);
    std::fprintf(stderr, "layer %d done\n", layer);
  }
  study.print();
}

}  // namespace tactic::bench
