// Attention of one or several query rows, with or without a sequence.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "capi/context.h"
#include "capi/sequence.h"
#include "capi/structs.h"
#include "decode/decode.h"

namespace tactic::capi {
namespace {

constexpr int kMostRows = 65536;

std::string place(int rows, int row) { return rows == 1 ? "" : "row " + std::to_string(row) + ", "; }

void check_sinks(const float* sinks, int q_heads) {
  for (int h = 0; sinks != nullptr && h < q_heads; ++h) {
    if (std::isfinite(sinks[h]) || sinks[h] == -std::numeric_limits<float>::infinity()) continue;
    refuse("args.sink_logits[" + std::to_string(h) + "] is " + std::to_string(sinks[h]) + ", must be finite or -infinity");
  }
}

template <typename T>
void check_array(const char* name, const T* array, std::size_t count, std::int64_t needed) {
  if (array == nullptr || count >= static_cast<std::size_t>(needed)) return;
  refuse(std::string("report.") + name + "_count is " + std::to_string(count) + ", must be at least " + std::to_string(needed));
}

// The rows of one call, checked; what row r reads and writes.
class Rows {
 public:
  Rows(const tactic_attend_args& args, const Attention& attention, const KvView& kv)
      : args_(args), shape_(attention.shape), kv_(kv) {
    check_range("args.rows", args.rows, 1, kMostRows);
    require(args.q, "args.q");
    require(args.out, "args.out");
    const std::int64_t row = std::int64_t{shape_.q_heads} * shape_.head_dim;
    if (args.q_row_stride != 0) {
      check_range("args.q_row_stride", args.q_row_stride, row, std::numeric_limits<std::int32_t>::max());
    }
    q_stride_ = args.q_row_stride == 0 ? row : args.q_row_stride;
    check_sinks(args.sink_logits, shape_.q_heads);
    if (args.row_tokens == nullptr && kv.tokens < args.rows) {
      refuse("args.rows is " + std::to_string(args.rows) + ", must be at most kv.tokens (" + std::to_string(kv.tokens) +
             ") when args.row_tokens is null");
    }
    for (int r = 0; r < args.rows; ++r) {
      if (args.row_tokens != nullptr && (args.row_tokens[r] < 1 || args.row_tokens[r] > kv.tokens)) {
        refuse("args.row_tokens[" + std::to_string(r) + "] is " + std::to_string(args.row_tokens[r]) + ", must be in [1, " +
               std::to_string(kv.tokens) + "], the tokens of the view");
      }
      check_q(r);
    }
  }
  const float* q(int r) const { return args_.q + r * q_stride_; }
  float* out(int r) const { return args_.out + std::int64_t{r} * shape_.q_heads * shape_.v_head_dim; }
  float* lse(int r) const { return args_.lse == nullptr ? nullptr : args_.lse + std::int64_t{r} * shape_.q_heads; }
  KvView view(int r) const {
    KvView view = kv_;
    view.tokens = args_.row_tokens != nullptr ? args_.row_tokens[r] : kv_.tokens - args_.rows + 1 + r;
    return view;
  }
  // "query head 3 (KV head 1)" of the first head whose output is not finite.
  std::string bad_head(int r) const {
    for (int h = 0; h < shape_.q_heads; ++h) {
      if (all_finite(out(r) + std::int64_t{h} * shape_.v_head_dim, shape_.v_head_dim)) continue;
      return "query head " + std::to_string(h) + " (KV head " + std::to_string(h / shape_.group()) + ")";
    }
    return "a query head";
  }

 private:
  void check_q(int r) const {
    for (int h = 0; h < shape_.q_heads; ++h) {
      if (all_finite(q(r) + std::int64_t{h} * shape_.head_dim, shape_.head_dim)) continue;
      throw Error(Status::non_finite, "args.q of " + place(args_.rows, r) + "query head " + std::to_string(h) +
                                          " holds NaN or infinity; nothing was computed");
    }
  }

  const tactic_attend_args& args_;
  const Shape& shape_;
  const KvView& kv_;
  std::int64_t q_stride_ = 0;
};

// The caller's report: checked, handed out row by row, summed up.
class Report {
 public:
  Report(tactic_report* to, int rows, const Shape& shape, std::int64_t tokens)
      : to_(to), shape_(shape), words_((tokens + 63) / 64) {
    if (to == nullptr) return;
    value_ = read_struct(to);
    check_array("attended", value_.attended, value_.attended_count, std::int64_t{rows} * shape.kv_heads);
    check_array("budget", value_.budget, value_.budget_count, std::int64_t{rows} * shape.q_heads);
    check_array("estimated_mass", value_.estimated_mass, value_.estimated_mass_count, std::int64_t{rows} * shape.q_heads);
    check_array("token_bits", value_.token_bits, value_.token_bits_count, rows * shape.kv_heads * words_);
    value_.bytes = value_.dense_bytes = 0;
    value_.rank_us = value_.estimate_us = value_.union_us = value_.attend_us = value_.total_us = 0;
  }
  // What the core fills for row r, or null when nobody asked.
  StepReport* begin(int r) {
    if (to_ == nullptr) return nullptr;
    step_ = StepReport{};
    step_.attended = part(value_.attended, r, shape_.kv_heads);
    step_.budget = part(value_.budget, r, shape_.q_heads);
    step_.estimated_mass = part(value_.estimated_mass, r, shape_.q_heads);
    step_.token_bits = part(value_.token_bits, r, shape_.kv_heads * words_);
    std::fill(step_.token_bits.begin(), step_.token_bits.end(), 0);
    return &step_;
  }
  void end(std::int64_t tokens) {
    if (to_ == nullptr) return;
    spread_bits((tokens + 63) / 64);
    value_.bytes += step_.bytes;
    value_.dense_bytes += step_.dense_bytes;
    value_.rank_us += step_.rank_us;
    value_.estimate_us += step_.estimate_us;
    value_.union_us += step_.union_us;
    value_.attend_us += step_.attend_us;
    value_.total_us += step_.total_us;
  }
  void finish() const {
    if (to_ != nullptr) write_struct(value_, to_);
  }

 private:
  template <typename T>
  static std::span<T> part(T* array, int r, std::int64_t count) {
    if (array == nullptr) return {};
    return {array + r * count, static_cast<std::size_t>(count)};
  }
  // A row that sees fewer tokens than the view has fewer words a head: apart, from the last head on.
  void spread_bits(std::int64_t words) {
    if (step_.token_bits.empty() || words == words_) return;
    std::uint64_t* bits = step_.token_bits.data();
    for (std::int64_t h = shape_.kv_heads - 1; h >= 0; --h) {
      std::copy_backward(bits + h * words, bits + (h + 1) * words, bits + h * words_ + words);
      std::fill(bits + h * words_ + words, bits + (h + 1) * words_, 0);
    }
  }

  tactic_report* to_;
  const Shape& shape_;
  std::int64_t words_;
  tactic_report value_{};
  StepReport step_;
};

// step(q, view, out, lse, report) -> Status, for every row. The rows after one that is not finite are computed all the same.
template <typename Step>
void run_rows(const tactic_attend_args& args, const Attention& attention, const KvView& kv, tactic_report* report, Step&& step) {
  const Rows rows(args, attention, kv);
  Report reports(report, args.rows, attention.shape, kv.tokens);
  int first_bad = -1;
  for (int r = 0; r < args.rows; ++r) {
    const KvView view = rows.view(r);
    const Status status = step(rows.q(r), view, rows.out(r), rows.lse(r), reports.begin(r));
    reports.end(view.tokens);
    if (status != Status::ok && first_bad < 0) first_bad = r;
  }
  reports.finish();
  if (first_bad >= 0) {
    throw Error(Status::non_finite, "the result of " + place(args.rows, first_bad) + rows.bad_head(first_bad) +
                                        " is not finite: K or V holds NaN or infinity, or logits overflow; find the rows");
  }
}

}  // namespace

tactic_attend_args Growing<tactic_attend_args>::defaults() {
  tactic_attend_args args{};
  args.size = sizeof args;
  args.rows = 1;
  return args;
}

tactic_report Growing<tactic_report>::defaults() {
  tactic_report report{};
  report.size = sizeof report;
  return report;
}

}  // namespace tactic::capi

using namespace tactic::capi;

tactic_status tactic_attend_args_init(tactic_attend_args* args, size_t size) {
  return guard([&] { write_defaults(args, size); });
}

tactic_status tactic_report_init(tactic_report* report, size_t size) {
  return guard([&] { write_defaults(report, size); });
}

tactic_status tactic_attend_dense(tactic_context* context, const tactic_attention* attention, const tactic_kv_view* kv,
                                  const tactic_attend_args* args, tactic_report* report) {
  return guard(context, "context", [&] {
    require(attention, "attention");
    Attention layer = to_core(*attention);
    const tactic::KvView view = to_core(read_struct(kv), layer.shape);
    const tactic_attend_args rows = read_struct(args);
    layer.params.sink_logits = rows.sink_logits;
    tactic::Options options;
    options.method = tactic::Method::full;
    run_rows(rows, layer, view, report,
             [&](const float* q, const tactic::KvView& seen, float* out, float* lse, tactic::StepReport* step) {
               return tactic::decode_step(*context->team, *context->workspace, {q, layer.shape, layer.params}, seen, nullptr,
                                          options, out, lse, step);
             });
  });
}

tactic_status tactic_sequence_attend(tactic_sequence* sequence, tactic_context* context, int32_t layer, const tactic_kv_view* kv,
                                     const tactic_attend_args* args, tactic_report* report) {
  return guard(sequence, "sequence", [&] {
    require(context, "context", "create it first");
    const Claim claim(*context, "context");
    const tactic::Sequence& state = sequence->state;
    check_range("layer", layer, 0, state.config().layers - 1);
    const Attention attention{state.config().shape, state.config().params};
    const tactic::KvView view = to_core(read_struct(kv), attention.shape);
    const tactic_attend_args rows = read_struct(args);
    if (!(rows.mass >= 0 && rows.mass <= 1)) {
      refuse("args.mass is " + std::to_string(rows.mass) + ", must be in (0, 1], or 0 for the sequence's");
    }
    run_rows(rows, attention, view, report,
             [&](const float* q, const tactic::KvView& seen, float* out, float* lse, tactic::StepReport* step) {
               return state.attend(*context->team, *context->workspace, layer, q, seen, rows.sink_logits, out, lse, step,
                                   rows.mass);
             });
  });
}
