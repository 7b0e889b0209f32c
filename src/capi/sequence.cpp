// Sequences: their life, queries, clustering, rollback.
#include "capi/sequence.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>

#include "capi/context.h"
#include "capi/structs.h"

namespace tactic::capi {
namespace {

constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();

void check_layer(const Sequence& sequence, std::int32_t layer) { check_range("layer", layer, 0, sequence.config().layers - 1); }

std::int64_t stride_or(const char* name, std::int64_t stride, std::int64_t contiguous, std::int64_t least) {
  if (stride == 0) return contiguous;
  check_range(name, stride, least, std::numeric_limits<std::int32_t>::max());
  return stride;
}

// The tokens that observe() keeps must be finite: one NaN would stay in the moments for good.
void check_observed(const float* q, const Shape& shape, int tokens, std::int64_t token_stride, std::int64_t head_stride) {
  for (int t = std::max(0, tokens - QueryMoment::kWindow); t < tokens; ++t) {
    for (int h = 0; h < shape.q_heads; ++h) {
      const float* row = q + t * token_stride + h * head_stride;
      if (all_finite(row, shape.head_dim)) continue;
      throw Error(Status::non_finite, "q of token " + std::to_string(t) + ", query head " + std::to_string(h) +
                                          " holds NaN or infinity; nothing was observed");
    }
  }
}

}  // namespace

tactic_update_report Growing<tactic_update_report>::defaults() {
  tactic_update_report report{};
  report.size = sizeof report;
  return report;
}

}  // namespace tactic::capi

using namespace tactic::capi;

tactic_status tactic_update_report_init(tactic_update_report* report, size_t size) {
  return guard([&] { write_defaults(report, size); });
}

tactic_status tactic_sequence_create(const tactic_sequence_config* config, tactic_sequence** sequence) {
  return guard([&] {
    require(sequence, "sequence");
    *sequence = nullptr;
    *sequence = std::make_unique<tactic_sequence>(tactic::Sequence(to_core(read_struct(config)))).release();
  });
}

void tactic_sequence_destroy(tactic_sequence* sequence) { delete sequence; }

const char* tactic_sequence_error(const tactic_sequence* sequence) {
  return sequence == nullptr ? "sequence is null" : sequence->message.text;
}

tactic_status tactic_sequence_fork(tactic_sequence* sequence, tactic_sequence** fork) {
  return guard(sequence, "sequence", [&] {
    require(fork, "fork");
    *fork = nullptr;
    *fork = std::make_unique<tactic_sequence>(sequence->state).release();
  });
}

tactic_status tactic_sequence_get_options(tactic_sequence* sequence, tactic_options* options) {
  return guard(sequence, "sequence", [&] {
    require(options, "options");
    write_defaults(options, options->size, to_c(sequence->state.config().options));
  });
}

tactic_status tactic_sequence_set_options(tactic_sequence* sequence, const tactic_options* options) {
  return guard(sequence, "sequence", [&] { sequence->state.set_options(to_core(read_struct(options))); });
}

tactic_status tactic_sequence_observe(tactic_sequence* sequence, int32_t layer, const float* q, int32_t tokens,
                                      int64_t token_stride, int64_t head_stride) {
  return guard(sequence, "sequence", [&] {
    const tactic::Shape& shape = sequence->state.config().shape;
    check_layer(sequence->state, layer);
    require(q, "q");
    check_range("tokens", tokens, 1, kMostTokens);
    const std::int64_t row = std::int64_t{shape.q_heads} * shape.head_dim;
    token_stride = stride_or("token_stride", token_stride, row, shape.head_dim);
    head_stride = stride_or("head_stride", head_stride, shape.head_dim, shape.head_dim);
    check_observed(q, shape, tokens, token_stride, head_stride);
    sequence->state.observe(layer, q, tokens, token_stride, head_stride);
  });
}

tactic_status tactic_sequence_update(tactic_sequence* sequence, tactic_context* context, int32_t layer, const tactic_kv_view* kv,
                                     int32_t may_recluster, tactic_update_report* report) {
  return guard(sequence, "sequence", [&] {
    require(context, "context", "create it first");
    const Claim claim(*context, "context");
    check_layer(sequence->state, layer);
    const tactic::KvView view = to_core(read_struct(kv), sequence->state.config().shape);
    tactic_update_report result = report == nullptr ? Growing<tactic_update_report>::defaults() : read_struct(report);
    const tactic::UpdateReport done =
        sequence->state.update(*context->team, *context->workspace, layer, view, may_recluster != 0);
    result.clustered = done.clustered;
    result.seconds = done.seconds;
    if (report != nullptr) write_struct(result, report);
  });
}

tactic_status tactic_sequence_due(tactic_sequence* sequence, int32_t layer, int64_t tokens, int64_t* due) {
  return guard(sequence, "sequence", [&] {
    require(due, "due");
    check_layer(sequence->state, layer);
    check_range("tokens", tokens, 0, kMostTokens);
    *due = sequence->state.due(layer, tokens);
  });
}

tactic_status tactic_sequence_clustered(tactic_sequence* sequence, int32_t layer, int64_t* first, int64_t* last) {
  return guard(sequence, "sequence", [&] {
    require(first, "first");
    require(last, "last");
    check_layer(sequence->state, layer);
    *first = sequence->state.layer(layer).first();
    *last = sequence->state.layer(layer).last();
  });
}

tactic_status tactic_sequence_truncate(tactic_sequence* sequence, int64_t tokens) {
  return guard(sequence, "sequence", [&] {
    check_range("tokens", tokens, 0, kMostTokens);
    sequence->state.truncate(tokens);
  });
}

tactic_status tactic_sequence_invalidate(tactic_sequence* sequence, int64_t first, int64_t last) {
  return guard(sequence, "sequence", [&] {
    check_range("first", first, 0, kMostTokens);
    check_range("last", last, first, kMostTokens);
    sequence->state.invalidate(first, last);
  });
}

tactic_status tactic_sequence_clear(tactic_sequence* sequence) {
  return guard(sequence, "sequence", [&] { sequence->state.clear(); });
}

tactic_status tactic_sequence_index_bytes(tactic_sequence* sequence, size_t* bytes) {
  return guard(sequence, "sequence", [&] {
    require(bytes, "bytes");
    *bytes = sequence->state.index_bytes();
  });
}
