// From logits to lists: the normaliser over all pieces, the choice by expected loss, the lists. Included by .cu files only.
#pragma once

#include "select/cuda_score.h"

namespace tactic::cuda {

// The half variance of a head per unit of spread, for the part that a column lies in. Columns are asked for in ascending order.
template <typename Shape>
class HalfVariance {
 public:
  __device__ HalfVariance(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared, int member)
      : shared_(shared),
        begin_(task.index.part_begin + static_cast<std::int64_t>(piece.slot) * (task.index.part_capacity + 1)),
        scale_(task.spread ? 0.5f * task.query.scale * task.query.scale : 0.0f),
        row_tiles_(task.query.shape.head_dim / kTileRows),
        parts_(task.spread ? piece.parts : 0),
        member_(member) {}

  __device__ float of(int column) {
    while (part_ < parts_ && column >= end_) {
      if (++part_ == parts_) break;
      end_ = part_ + 1 < parts_ ? __ldg(begin_ + part_ + 1) : 0x7fffffff;
      float form = 0;
      for (int i = 0; i < row_tiles_; ++i) form += shared_.form[(part_ * Shape::kRowTiles + i) * Shape::kGroup + member_];
      value_ = fmaxf(form * scale_, 0.0f);
      // fmaxf drops a NaN: keep it
      if (isnan(form)) value_ = form;
    }
    return value_;
  }

 private:
  const SelectShared<Shape>& shared_;
  const std::int32_t* begin_;
  float scale_;
  int row_tiles_;
  int parts_;
  int member_;
  int part_ = -1;
  int end_ = -1;
  float value_ = 0;
};

// Of one column and head, base 2.
struct Estimate {
  float half_variance;  // natural
  float mass;           // log2 of the estimated mass
};

template <typename Shape>
__device__ __forceinline__ Estimate estimate(const SelectTask& task, const SelectShared<Shape>& shared, float logit, float h,
                                             int column) {
  float variance = h * shared.spread[column];
  if (task.query.softcap > 0) {
    const float ratio = logit * kLn2 / task.query.softcap;
    const float slope = 1 - ratio * ratio;
    variance *= slope * slope;
  }
  return {variance, fmaf(variance, kLog2E, logit + shared.log_size[column])};
}

// Log-sum-exp base 2 of head `lane % kGroup` over all pieces and always-attended tokens. Holds a barrier of the whole cluster.
template <typename Shape>
__device__ float normaliser(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared) {
  const int member = piece.lane % Shape::kGroup;
  const int within = piece.lane / Shape::kGroup;
  const int step = piece.warps * Shape::kPerWarp;
  const int start = piece.warp * Shape::kPerWarp + within;
  float top = kLowest;
  {
    HalfVariance<Shape> half(task, piece, shared, member);
    for (int c = start; c < piece.count; c += step) {
      const float logit = shared.logit[c * Shape::kGroup + member];
      top = fmaxf(top, estimate(task, shared, logit, half.of(piece.first + c), c).mass);
    }
  }
#pragma unroll
  for (int o = 16; o >= Shape::kGroup; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  float sum = 0;
  {
    HalfVariance<Shape> half(task, piece, shared, member);
    for (int c = start; c < piece.count; c += step) {
      const float logit = shared.logit[c * Shape::kGroup + member];
      sum += exp2_fast(estimate(task, shared, logit, half.of(piece.first + c), c).mass - top);
    }
  }
#pragma unroll
  for (int o = 16; o >= Shape::kGroup; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  if (piece.lane < Shape::kGroup) {
    shared.top[piece.warp * Shape::kGroup + member] = top;
    shared.sum[piece.warp * Shape::kGroup + member] = sum;
  }
  __syncthreads();
  if (piece.warp == 0) {
    RunningSum all;
    for (int e = within; e < 2 * piece.warps; e += Shape::kPerWarp) {
      all.merge(shared.top[e * Shape::kGroup + member], shared.sum[e * Shape::kGroup + member]);
    }
#pragma unroll
    for (int o = 16; o >= Shape::kGroup; o /= 2) {
      const float other_top = __shfl_xor_sync(~0u, all.top, o);
      const float other_sum = __shfl_xor_sync(~0u, all.sum, o);
      all.merge(other_top, other_sum);
    }
    const int at = piece.rank * Shape::kGroup + member;
    if (piece.pieces == 1) {
      if (within == 0) {
        shared.piece_top[at] = all.top;
        shared.piece_sum[at] = all.sum;
      }
    } else {
      for (int to = within; to < piece.pieces; to += Shape::kPerWarp) {
        store_in_block(shared.piece_top + at, to, all.top);
        store_in_block(shared.piece_sum + at, to, all.sum);
      }
    }
  }
  if (piece.pieces == 1) {
    __syncthreads();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  RunningSum all;
  for (int p = 0; p < piece.pieces; ++p) {
    all.merge(shared.piece_top[p * Shape::kGroup + member], shared.piece_sum[p * Shape::kGroup + member]);
  }
  return all.top + log2_fast(all.sum);
}

__device__ __forceinline__ float sum_members(float v, int group) {
  for (int o = 1; o < group; o *= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

enum ColumnCode : std::uint8_t { kDropped = 0, kAttended = 1, kRepresented = 2 };

// The choice of every column into `code`, log weights of the represented into `logit`, counts per warp into `count`.
template <typename Shape>
__device__ void choose_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared, float total) {
  constexpr float kRepresentedRows = 0.27f;  // select/loss.h
  constexpr float kTailShare = 0.25f;        // keep_worthy_tail()
  constexpr float kRippleExponent = 5.0f;    // representation_ripple()
  constexpr float kRippleFloor = 0.01f;
  const int member = piece.lane % Shape::kGroup;
  const int within = piece.lane / Shape::kGroup;
  const bool sound = member < task.query.shape.group() && isfinite(total);
  const float price = task.loss_per_row;
  const float tail_price = price * (kRepresentedRows * kTailShare);
  const float least = task.represent ? tail_price : price;
  int tokens = 0, chosen = 0, represented = 0;
  HalfVariance<Shape> half(task, piece, shared, member);
  for (int first = piece.warp * Shape::kPerWarp; first < piece.count; first += piece.warps * Shape::kPerWarp) {
    const int c = first + within;
    const bool inside = c < piece.count;
    const int column = inside ? c : first;
    const float logit = shared.logit[column * Shape::kGroup + member];
    const Estimate e = estimate(task, shared, logit, half.of(piece.first + column), column);
    const float share = sound && inside ? exp2_fast(e.mass - total) : 0.0f;
    const float squares = sum_members(share * share, Shape::kGroup);
    std::uint8_t code = kDropped;
    // Neither the loss of representing a column nor the weight of its mean V exceeds its share: most columns end here.
    if (__any_sync(~0u, squares > least)) {
      const int size = shared.begin[column + 1] - shared.begin[column];
      const float n = static_cast<float>(size);
      const float variance = 2 * e.half_variance;
      const float scatter = exp2_fast(fminf(variance, kRippleExponent) * kLog2E) - 1;
      const float ripple = task.represent && task.spread ? fminf(1.0f, scatter / n + kRippleFloor) : 1.0f;
      const float loss = sum_members(share * share * ripple, Shape::kGroup);
      const float deviation = sqrtf(variance);
      // log cosh s = s + log((1 + exp(-2 s)) / 2)
      const float weight =
          logit + shared.log_size[column] + deviation * kLog2E + log2_fast(0.5f + 0.5f * exp2_fast(-2 * kLog2E * deviation));
      const float weight_share = sound && inside ? exp2_fast(weight - total) : 0.0f;
      const float weight_squares = sum_members(weight_share * weight_share, Shape::kGroup);
      if (loss > price * n) {
        code = kAttended;
      } else if (task.represent && weight_squares > tail_price) {
        code = kRepresented;
        if (inside) shared.logit[c * Shape::kGroup + member] = weight * kLn2;
      }
      if (inside && member == 0) {
        tokens += code == kAttended ? size : 0;
        chosen += code == kAttended ? 1 : 0;
        represented += code == kRepresented ? 1 : 0;
      }
    }
    if (inside && member == 0) shared.code[c] = code;
  }
  tokens = __reduce_add_sync(~0u, tokens);
  chosen = __reduce_add_sync(~0u, chosen);
  represented = __reduce_add_sync(~0u, represented);
  if (piece.lane == 0) {
    shared.count[piece.warp] = tokens;
    shared.count[32 + piece.warp] = chosen;
    shared.count[64 + piece.warp] = represented;
  }
}

// Sum of `count` over the warps before this one, and over all.
struct Offsets {
  int before;
  int all;
  __device__ Offsets(const std::int32_t* count, const Piece& piece) {
    const int own = piece.lane < piece.warps ? count[piece.lane] : 0;
    before = __reduce_add_sync(~0u, piece.lane < piece.warp ? own : 0);
    all = __reduce_add_sync(~0u, own);
  }
};

// Represented columns to the lists; chosen columns and the places of their tokens to shared memory. Order: by warp, then by
// column.
template <typename Shape>
__device__ void list_columns(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared, int tokens_before,
                             int chosen_before, int represented_before) {
  const int group = task.query.shape.group();
  const int member = piece.lane % Shape::kGroup;
  const int within = piece.lane / Shape::kGroup;
  const std::int64_t stretch =
      (static_cast<std::int64_t>(piece.slot) * piece.pieces + piece.rank) * task.lists.represented_stride;
  auto* numbers = reinterpret_cast<std::int32_t*>(shared.scale);
  auto* places = reinterpret_cast<std::int32_t*>(shared.spread);
  for (int first = piece.warp * Shape::kPerWarp; first < piece.count; first += piece.warps * Shape::kPerWarp) {
    const int c = first + within;
    const int code = c < piece.count ? shared.code[c] : static_cast<int>(kDropped);
    const std::uint32_t attended = __ballot_sync(~0u, code == kAttended && member == 0);
    const std::uint32_t represented = __ballot_sync(~0u, code == kRepresented && member == 0);
    const std::uint32_t earlier = (1u << (within * Shape::kGroup)) - 1;
    if (code == kRepresented) {
      const std::int64_t at = stretch + represented_before + __popc(represented & earlier);
      if (member == 0) task.lists.represented[at] = piece.first + c;
      if (member < group) task.lists.log_weight[at * group + member] = shared.logit[c * Shape::kGroup + member];
    }
    represented_before += __popc(represented);
    if (attended == 0) continue;
    const int size = code == kAttended && member == 0 ? shared.begin[c + 1] - shared.begin[c] : 0;
    int place = size;  // inclusive scan over the lanes
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, place, o);
      if (piece.lane >= o) place += other;
    }
    if (size > 0) {
      const int at = chosen_before + __popc(attended & earlier);
      numbers[at] = c;
      places[at] = tokens_before + place - size;
    }
    tokens_before += __shfl_sync(~0u, place, 31);
    chosen_before += __popc(attended);
  }
}

// Tokens of the chosen columns to the list, a warp a column, several columns' loads in flight.
template <typename Shape>
__device__ void list_tokens(const SelectTask& task, const Piece& piece, const SelectShared<Shape>& shared, int chosen) {
  constexpr int kInFlight = 8;
  const auto* numbers = reinterpret_cast<const std::int32_t*>(shared.scale);
  const auto* places = reinterpret_cast<const std::int32_t*>(shared.spread);
  const std::int32_t* from = task.index.tokens + static_cast<std::int64_t>(piece.slot) * task.index.token_capacity;
  std::int32_t* to = task.lists.tokens + static_cast<std::int64_t>(piece.slot) * task.lists.token_stride + shared.begin[0];
  for (int base = piece.warp; base < chosen; base += piece.warps * kInFlight) {
    int source[kInFlight], place[kInFlight], left[kInFlight];
    std::int32_t token[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = base + i * piece.warps;
      const int c = at < chosen ? numbers[at] : 0;
      source[i] = shared.begin[c] + piece.lane;
      left[i] = at < chosen ? shared.begin[c + 1] - source[i] : 0;  // > 0: this lane has a token
      place[i] = at < chosen ? places[at] + piece.lane : 0;
      if (left[i] > 0) token[i] = __ldg(from + source[i]);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (left[i] > 0) to[place[i]] = token[i];
      for (int more = 32; more < left[i]; more += 32) to[place[i] + more] = __ldg(from + source[i] + more);
    }
  }
}

}  // namespace tactic::cuda
