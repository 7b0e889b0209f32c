// The query metric on the device: recent queries in a ring, and the factor L of their moment (cluster.h: make_metric).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cluster/cluster.h"
#include "core/device.h"

namespace tactic::cuda {

// The last kWindow tokens' queries of one layer. Unlike QueryMoment, which fades what is older in bunches, it forgets exactly.
struct QueryRing {
  static constexpr int kWindow = QueryMoment::kWindow;
  std::uint16_t* rows = nullptr;   // [S, kWindow, q_heads, head_dim] bf16; token t at t % kWindow
  std::int32_t* tokens = nullptr;  // [S, kWindow] the token that a row holds, -1: none
};
std::size_t query_ring_bytes(int sequences, const Shape& shape);
QueryRing make_query_ring(int sequences, const Shape& shape, void* memory);  // of query_ring_bytes(); no device access
void clear_query_ring(const QueryRing& ring, int sequence, DeviceStream stream);

// A decode step: q's row of sequence s belongs to token lengths[s] - 1. Captures into a graph.
void observe_step(const QueryRing& ring, const DeviceQuery& query, const std::int32_t* lengths, int sequences,
                  DeviceStream stream);
// A prompt of one sequence: row i of q [tokens, q_heads, head_dim], token_stride bytes apart, belongs to token first + i. Only
// the last kWindow are read.
void observe_prompt(const QueryRing& ring, const Shape& shape, int sequence, const void* q, DeviceType type,
                    std::int64_t token_stride, std::int32_t first, std::int32_t tokens, DeviceStream stream);

// What average_over_turns() multiplies the blocks of a moment with, for one model.
struct TurnTable {
  Rotary::Layout layout = Rotary::Layout::unknown;
  int turned = 0;                // pairs that turn
  const float* turns = nullptr;  // [pairs, pairs, 4] of (p, r): mean turn by w_p - w_r, then by w_p + w_r, complex
};
std::vector<float> turn_table(const Rotary& rotary, int dim);

// factor [kv_heads, d, d] of one sequence from its ring: lower triangular L, M = L L^T; a diagonal one where `wanted` is diagonal
// or the layout unknown, the identity where nothing was observed or l2 is wanted. Tokens with a NaN or an infinity are passed
// over.
void make_factors(const QueryRing& ring, const Shape& shape, int sequence, Metric wanted, const TurnTable& table, float shrinkage,
                  float* factor, DeviceStream stream);

}  // namespace tactic::cuda
