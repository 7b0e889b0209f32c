// Scores and weighted sums of one warp without tensor cores, for any types and dims: f32 caches, K and V of different types or
// dims, groups above 8 of uncommon dims. All in f32. Right rather than fast.
#pragma once

#include "attend/cuda_math.cuh"

namespace tactic::cuda {

class AnyMath {
 public:
  static constexpr int kTiles = 2, kWarps = 8;
  static constexpr int kRowChunks = 0, kMeanChunks = 0;  // known at run time only
  static constexpr float kLift = 0;

  // Floats of a warp: queries [G, dim], outputs [G, v_dim], weights [G, 16], factors [16].
  static __host__ __device__ constexpr int warp_bytes(int group, int dim, int v_dim) {
    return 4 * (group * (dim + v_dim + kTile) + kMaxGroup);
  }

  __device__ AnyMath(const AttendArgs& a, unsigned char* memory)
      : a_(a),
        q_(reinterpret_cast<float*>(memory)),
        out_(q_ + a.group * a.dim),
        weights_(out_ + a.group * a.v_dim),
        keep_(weights_ + a.group * kTile),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ int k_chunks() const { return static_cast<int>(a_.dim * size_of(a_.k_type) / 16); }
  __device__ int v_chunks() const { return static_cast<int>(a_.v_dim * size_of(a_.v_type) / 16); }

  __device__ int mean_chunks() const { return a_.v_dim / 16; }
  __device__ int v_dim() const { return a_.v_dim; }

  __device__ void begin(const AttendArgs& a, int problem) {
    const int sequence = problem / a.kv_heads, kv_head = problem % a.kv_heads;
    const auto* rows = static_cast<const unsigned char*>(a.query.q) + sequence * a.query.sequence_stride +
                       static_cast<std::size_t>(kv_head) * a.group * a.dim * size_of(a.query.type);
    const float scale = a.query.scale * a.k_scale * (a.query.softcap > 0 ? 1.0f / a.query.softcap : kLog2e);
    __syncwarp();
    for (int i = 2 * lane_; i < a.group * a.dim; i += 64) {
      const float2 x = load_two(rows, a.query.type, i);
      q_[i] = x.x * scale;
      q_[i + 1] = x.y * scale;
    }
    for (int i = lane_; i < a.group * a.v_dim; i += 32) out_[i] = 0;
    max_ = -INFINITY;
    sum_ = 0;
    __syncwarp();
  }

  __device__ void weigh_tokens(std::uint32_t stage, unsigned valid) {
    const auto* k = static_cast<const unsigned char*>(__cvta_shared_to_generic(stage));
    const int k_stride = row_stride(k_chunks()), v_stride = row_stride(v_chunks());
    const int token = lane_ % kTile;
    for (int head = lane_ / kTile; head < a_.group; head += 2) {
      float s = 0;
      for (int d = 0; d < a_.dim; d += 2) {
        const float2 x = load_two(k + token * k_stride, a_.k_type, d);
        s += q_[head * a_.dim + d] * x.x + q_[head * a_.dim + d + 1] * x.y;
      }
      s = checked(s);
      if (a_.query.softcap > 0) s = capped(s, a_.query.softcap * kLog2e);
      weights_[head * kTile + token] = valid >> token & 1 ? s : -INFINITY;
    }
    to_weights();
    const unsigned char* v = k + kTile * k_stride;
    for (int d = 2 * lane_; d < a_.v_dim; d += 64) {
      add(d, [&](int t) { return load_two(v + t * v_stride, a_.v_type, d); });
    }
    __syncwarp();
  }

  __device__ void weigh_clusters(std::uint32_t stage, unsigned valid, int group, float inverse_v_scale) {
    const auto* values = static_cast<const signed char*>(__cvta_shared_to_generic(stage));
    const int stride = row_stride(a_.v_dim / 16);
    const auto* scales = reinterpret_cast<const float*>(values + kRepresentedTile * stride);
    const float* logits = scales + kRepresentedTile;
    for (int half = 0; half < kRepresentedTile; half += kTile) {
      for (int i = lane_; i < group * kTile; i += 32) {
        const int head = i / kTile, place = half + i % kTile;
        weights_[i] = valid >> place & 1 ? logits[place * group + head] * kLog2e : -INFINITY;
      }
      to_weights();
      for (int d = 2 * lane_; d < a_.v_dim; d += 64) {
        add(d, [&](int t) {
          const float scale = valid >> (half + t) & 1 ? scales[half + t] * inverse_v_scale : 0.0f;
          const signed char* row = values + (half + t) * stride + d;
          return make_float2(row[0] * scale, row[1] * scale);
        });
      }
      __syncwarp();
    }
  }

  __device__ void end(int tile, int heads, float* out, int stride, float* maximum, float* sum) {
    if (lane_ / 8 == tile && lane_ % 8 < heads) {
      maximum[lane_ % 8] = max_;
      sum[lane_ % 8] = sum_;
    }
    for (int i = lane_; i < heads * a_.v_dim; i += 32) out[i / a_.v_dim * stride + i % a_.v_dim] = out_[8 * tile * a_.v_dim + i];
  }

 private:
  // Logits in weights_ to weights; lane h holds head h's maximum and sum.
  __device__ void to_weights() {
    __syncwarp();
    if (lane_ < a_.group) {
      float* w = weights_ + lane_ * kTile;
      float top = max_;
      for (int t = 0; t < kTile; ++t) top = fmaxf(top, w[t]);
      const float keep = top > max_ ? exp2f(max_ - top) : 1.0f;
      const float base = top == -INFINITY ? 0.0f : top;
      sum_ *= keep;
      for (int t = 0; t < kTile; ++t) sum_ += w[t] = exp2f(w[t] - base);
      max_ = top;
      keep_[lane_] = keep;
    }
    __syncwarp();
  }

  // Dims d and d + 1 of every head's output; value(t): those of entry t.
  template <typename Value>
  __device__ void add(int d, const Value& value) {
    for (int head = 0; head < a_.group; ++head) {
      float* out = out_ + head * a_.v_dim + d;
      float x = out[0] * keep_[head], y = out[1] * keep_[head];
      for (int t = 0; t < kTile; ++t) {
        const float2 v = value(t);
        x += weights_[head * kTile + t] * v.x;
        y += weights_[head * kTile + t] * v.y;
      }
      out[0] = x;
      out[1] = y;
    }
  }

  const AttendArgs& a_;
  float* q_;
  float* out_;
  float* weights_;
  float* keep_;
  int lane_;
  float max_ = -INFINITY, sum_ = 0;
};

}  // namespace tactic::cuda
