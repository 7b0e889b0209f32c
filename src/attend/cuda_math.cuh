// Scores and weighted sums of one warp on tensor cores: s = q k' scale, p = 2^(s - max), o += p v, for the G query heads of a KV
// head at once.
//
// Scores: mma with A = queries [16 rows, 16 dims], B = keys [16 dims, 8 tokens]. For G <= 8, rows 0-7 hold the queries rounded to
// the type of K and rows 8-15 what the rounding left, so that queries keep 16 bits and more at no cost. For G <= 16 all rows are
// heads and queries are rounded. Sum: A = values [16 dims, 16 tokens], B = weights [16 tokens, 8 heads], since the scores come
// out just as B wants them. Lane l = 4 g + t holds, of the scores, head g (and g + 8), tokens 2t, 2t+1, 2t+8, 2t+9; of the
// output, heads 2t, 2t+1 in two dims of each 16: g, g + 8, or 2g, 2g + 1 where values are bytes ("paired").
#pragma once

#include "attend/cuda_logit.cuh"
#include "attend/cuda_ring.cuh"

namespace tactic::cuda {

// Half: the type of the arithmetic (and of K and V in memory, unless kBytes: these are e4m3). kTiles: of 8 heads. kExact: q has
// that type, so that rounding leaves nothing.
template <typename HalfType, bool kBytesType, int kDimValue, int kTilesValue, bool kExact = false>
class MatrixMath {
 public:
  using Half = HalfType;
  static constexpr bool kBytes = kBytesType;
  static constexpr int kDim = kDimValue, kTiles = kTilesValue, kSteps = kDim / 16;
  // As many as registers allow; short rows need more on their way (8 x 128K, d = 64: dense 586 us with 8 warps, 534 with 12).
  static constexpr int kWarps = kDim <= 64 && kTiles == 1 ? 12 : 8;
  // Halves keep weights down to 2^-24 only, so the largest is 2^14 instead of 1.
  static constexpr float kLift = std::is_same_v<Half, __half> ? 14.0f : 0.0f;
  // A weight's exponent may be so much larger. Measured in a step of one kernel only, hence there.
  static constexpr float kSlack = !kExact ? 0.0f : std::is_same_v<Half, __half> ? 1.0f : 8.0f;

  // Of 16 bytes.
  static constexpr int kRowChunks = kDim * (kBytes ? 1 : 2) / 16, kMeanChunks = kDim / 16;
  static constexpr __device__ __host__ int k_chunks() { return kRowChunks; }
  static constexpr __device__ __host__ int v_chunks() { return kRowChunks; }
  static constexpr __device__ __host__ int mean_chunks() { return kMeanChunks; }
  static constexpr __device__ __host__ int v_dim() { return kDim; }

  __device__ MatrixMath(const AttendArgs& a, unsigned char*)
      : lane_(static_cast<int>(threadIdx.x) % 32), g_(lane_ / 4), t_(lane_ % 4) {
    cap_ = a.query.softcap > 0 ? a.query.softcap * kLog2e : 0.0f;
  }

  __device__ void begin(const AttendArgs& a, int problem) {
    const int sequence = problem / a.kv_heads, kv_head = problem % a.kv_heads;
    const auto* rows = static_cast<const unsigned char*>(a.query.q) + sequence * a.query.sequence_stride +
                       static_cast<std::size_t>(kv_head) * a.group * kDim * size_of(a.query.type);
    const float scale = a.query.scale * a.k_scale * (cap_ > 0 ? 1.0f / a.query.softcap : kLog2e);
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      const int head = g_ + 8 * h;
      const auto* row = rows + static_cast<std::size_t>(head) * kDim * size_of(a.query.type);
      if (kExact || a.query.type == (std::is_same_v<Half, __half> ? DeviceType::f16 : DeviceType::bf16)) {
        factor_[h] = scale;
#pragma unroll
        for (int j = 0; j < 2 * kSteps; ++j) {
          const auto* pair = reinterpret_cast<const std::uint32_t*>(row + 2 * query_dim(j));
          q_[j / 2][j % 2 * 2 + h] = head < a.group ? *pair : 0;
          if (kTiles == 1) q_[j / 2][j % 2 * 2 + 1] = 0;
        }
      } else {
        float2 x[2 * kSteps];
#pragma unroll
        for (int j = 0; j < 2 * kSteps; ++j) {
          x[j] = head < a.group ? load_two(row, a.query.type, query_dim(j)) : make_float2(0, 0);
        }
        take_query(x, h, scale);
      }
    }
    clear();
  }

  // The same from q in shared memory, `pitch` bytes a row. Exact q only.
  __device__ __forceinline__ void begin(const AttendArgs& a, const std::byte* rows, int pitch) {
    static_assert(kExact && kTiles == 1);
    factor_[0] = a.query.scale * a.k_scale * (cap_ > 0 ? __fdividef(1.0f, a.query.softcap) : kLog2e);
#pragma unroll
    for (int j = 0; j < 2 * kSteps; ++j) {
      q_[j / 2][j % 2 * 2] = g_ < a.group ? *reinterpret_cast<const std::uint32_t*>(rows + g_ * pitch + 2 * query_dim(j)) : 0;
      // zeros that the compiler does not know: it would make them again for every tile
      q_[j / 2][j % 2 * 2 + 1] = static_cast<std::uint32_t>(a.dim) >> (16 + j % 16);
    }
    clear();
  }

  // One tile of tokens.
  __device__ __forceinline__ void weigh_tokens(std::uint32_t stage, unsigned valid) {
    std::uint32_t p[kTiles][2];
    weigh_keys(stage, valid, p);
    add_values(stage, p);
  }

  // Its first half: weights of the tokens, from the stage's rows of K.
  __device__ __forceinline__ void weigh_keys(std::uint32_t stage, unsigned valid, std::uint32_t (&p)[kTiles][2]) {
    float s[kTiles][4];
    scores(stage + matrix_row(row_stride(k_chunks())), s);
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[h][c] = checked(s[h][c] * factor_[h]);
    }
    if (cap_ > 0) {
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
#pragma unroll
        for (int c = 0; c < 4; ++c) s[h][c] = capped(s[h][c], cap_);
      }
    }
    if (valid != 0xffffu) {
      const unsigned mine = valid >> 2 * t_;
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (!(mine >> ((c & 1) + 8 * (c >> 1)) & 1)) s[h][c] = -INFINITY;
        }
      }
    }
    weights(s);
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      p[h][0] = pack<Half>(s[h][0], s[h][1]);
      p[h][1] = pack<Half>(s[h][2], s[h][3]);
    }
  }

  // Its second half: the stage's rows of V times these weights.
  __device__ __forceinline__ void add_values(std::uint32_t stage, const std::uint32_t (&p)[kTiles][2]) {
    const std::uint32_t v = stage + kTile * row_stride(k_chunks()) + matrix_row(row_stride(v_chunks()));
    if constexpr (kBytes) {
#pragma unroll
      for (int j = 0; j < kSteps; j += 2) {
        std::uint32_t m[4];
        load_transposed(m, v + j * 16);
        add<Half>(j, half_of<0>(m[0]), half_of<1>(m[0]), half_of<0>(m[2]), half_of<1>(m[2]), p);
        if (j + 1 < kSteps) add<Half>(j + 1, half_of<0>(m[1]), half_of<1>(m[1]), half_of<0>(m[3]), half_of<1>(m[3]), p);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        std::uint32_t m[4];
        load_transposed(m, v + j * 32);
        add<Half>(j, m[0], m[1], m[2], m[3], p);
      }
    }
  }

  // One tile of clusters: logits are given, values are int8.
  __device__ __forceinline__ void weigh_clusters(std::uint32_t stage, unsigned valid, int group, float inverse_v_scale) {
    pair();
    constexpr int kStride = row_stride(kDim / 16);
    const std::uint32_t scales = stage + kRepresentedTile * kStride, logits = scales + kRepresentedTile * 4;
#pragma unroll 1
    for (int half = 0; half < kRepresentedTile; half += kTile) {
      float s[kTiles][4], scale[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int place = half + 2 * t_ + (c & 1) + 8 * (c >> 1);
        const bool here = valid >> place & 1;
        scale[c] = load_shared(scales + place * 4) * inverse_v_scale;
#pragma unroll
        for (int h = 0; h < kTiles; ++h) {
          const int head = g_ + 8 * h;
          s[h][c] = here && head < group ? load_shared(logits + (place * group + head) * 4) * kLog2e : here ? 0.0f : -INFINITY;
        }
      }
      weights(s);
      std::uint32_t p[kTiles][2];
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
        p[h][0] = pack<__nv_bfloat16>(s[h][0] * scale[0], s[h][1] * scale[1]);
        p[h][1] = pack<__nv_bfloat16>(s[h][2] * scale[2], s[h][3] * scale[3]);
      }
#pragma unroll
      for (int j = 0; j < kSteps; j += 2) {
        std::uint32_t m[4];
        load_transposed(m, stage + half * kStride + matrix_row(kStride) + j * 16);
        add<__nv_bfloat16>(j, int8_to_bf16<false>(m[0]), int8_to_bf16<true>(m[0]), int8_to_bf16<false>(m[2]),
                           int8_to_bf16<true>(m[2]), p);
        if (j + 1 == kSteps) break;
        add<__nv_bfloat16>(j + 1, int8_to_bf16<false>(m[1]), int8_to_bf16<true>(m[1]), int8_to_bf16<false>(m[3]),
                           int8_to_bf16<true>(m[3]), p);
      }
    }
  }

  // Maximum of head `head` (below 8) so far and sum of 2^(s - maximum + lift), in all lanes.
  __device__ __forceinline__ float2 sum_of(int head) const {
    float l = sum_[0];
    l += __shfl_xor_sync(kWarp, l, 1);
    l += __shfl_xor_sync(kWarp, l, 2);
    return make_float2(__shfl_sync(kWarp, max_[0], 4 * head), __shfl_sync(kWarp, l, 4 * head));
  }

  // Heads 8 tile .. 8 tile + 7 into out [8 or fewer heads, stride], maximum [8], sum [8].
  __device__ __forceinline__ void end(int tile, int heads, float* out, int stride, float* maximum, float* sum) {
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      if (h != tile) continue;
      float l = sum_[h];
      l += __shfl_xor_sync(kWarp, l, 1);
      l += __shfl_xor_sync(kWarp, l, 2);
      if (t_ == 0 && g_ < heads) {
        maximum[g_] = max_[h];
        sum[g_] = l;
      }
      const int near = paired_ ? 2 * g_ : g_, far = paired_ ? 2 * g_ + 1 : g_ + 8;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        if (2 * t_ < heads) {
          out[2 * t_ * stride + 16 * j + near] = out_[h][j][0];
          out[2 * t_ * stride + 16 * j + far] = out_[h][j][2];
        }
        if (2 * t_ + 1 < heads) {
          out[(2 * t_ + 1) * stride + 16 * j + near] = out_[h][j][1];
          out[(2 * t_ + 1) * stride + 16 * j + far] = out_[h][j][3];
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void clear() {
    paired_ = kBytes;
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      max_[h] = -INFINITY;
      sum_[h] = 0;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out_[h][j][c] = 0;
      }
    }
  }
  static __device__ __forceinline__ float load_shared(std::uint32_t address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
  }
  template <int kOdd>
  static __device__ __forceinline__ std::uint32_t half_of(std::uint32_t bytes) {
    return e4m3_to_half(__byte_perm(bytes, 0, kOdd ? 0x4431 : 0x4420));
  }

  // What the lane gives load_matrices: row (lane % 8) + 8 (lane / 16), chunk (lane / 8) % 2.
  __device__ __forceinline__ std::uint32_t matrix_row(int stride) const {
    return static_cast<std::uint32_t>((lane_ % 8 + lane_ / 16 * 8) * stride + lane_ / 8 % 2 * 16);
  }

  // The lane's dims in A's registers: of each 16, those of B (bytes come in fours).
  __device__ __forceinline__ int query_dim(int j) const {
    return j / 2 * 16 + (kBytes ? 4 * t_ + j % 2 * 2 : 2 * t_ + j % 2 * 8);
  }

  __device__ __forceinline__ void take_query(float2 (&x)[2 * kSteps], int h, float scale) {
    factor_[h] = scale;
    if constexpr (std::is_same_v<Half, __half>) {  // a power of two brings the row into the range of halves
      float largest = 0;
#pragma unroll
      for (int j = 0; j < 2 * kSteps; ++j) largest = fmaxf(largest, fmaxf(fabsf(x[j].x), fabsf(x[j].y)));
      largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, 2));
      const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
      if (exponent > 0 && exponent < 253) {
        factor_[h] *= __uint_as_float(static_cast<unsigned>(exponent) << 23);
        const float shrink = __uint_as_float(static_cast<unsigned>(254 - exponent) << 23);
#pragma unroll
        for (int j = 0; j < 2 * kSteps; ++j) x[j] = make_float2(x[j].x * shrink, x[j].y * shrink);
      }
    }
#pragma unroll
    for (int j = 0; j < 2 * kSteps; ++j) {
      const std::uint32_t rounded = pack<Half>(x[j].x, x[j].y);
      const int first = j % 2 * 2;  // A's registers: 0 and 2 are rows 0-7, 1 and 3 rows 8-15
      if constexpr (kTiles == 1) {
        const float2 back = unpack<Half>(rounded);
        q_[j / 2][first] = rounded;
        q_[j / 2][first + 1] = pack<Half>(x[j].x - back.x, x[j].y - back.y);
      } else {
        q_[j / 2][first + h] = rounded;
      }
    }
  }

  __device__ __forceinline__ void scores(std::uint32_t k, float (&s)[kTiles][4]) const {
    float near[2][4] = {}, far[2][4] = {};  // tokens 0-7, 8-15; two sums each, since each waits for the one before
    if constexpr (kBytes) {
#pragma unroll
      for (int j = 0; j < kSteps; j += 2) {
        std::uint32_t m[4];
        load_matrices(m, k + j * 16);
#pragma unroll
        for (int i = 0; i < 2 && j + i < kSteps; ++i) {
          score(near[i], j + i, e4m3_to_half(m[i] & 0xffffu), e4m3_to_half(m[i] >> 16));
          score(far[i], j + i, e4m3_to_half(m[2 + i] & 0xffffu), e4m3_to_half(m[2 + i] >> 16));
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        std::uint32_t m[4];
        load_matrices(m, k + j * 32);
        score(near[j % 2], j, m[0], m[1]);
        score(far[j % 2], j, m[2], m[3]);
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      near[0][c] += near[1][c];
      far[0][c] += far[1][c];
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if constexpr (kTiles == 1) {
        s[0][c] = kExact ? near[0][c] : near[0][c] + near[0][2 + c];
        s[0][2 + c] = kExact ? far[0][c] : far[0][c] + far[0][2 + c];
      } else {
        s[0][c] = near[0][c];
        s[1][c] = near[0][2 + c];
        s[0][2 + c] = far[0][c];
        s[1][2 + c] = far[0][2 + c];
      }
    }
  }
  __device__ __forceinline__ void score(float (&c)[4], int j, std::uint32_t b0, std::uint32_t b1) const {
    multiply_add<Half>(c, q_[j][0], q_[j][1], q_[j][2], q_[j][3], b0, b1);
  }

  // Logits to weights 2^(s - maximum), after raising the maximum where needed: where it is outgrown by far, since raising takes
  // as long as a fourth of a tile, and most tiles outgrow it by a little.
  __device__ __forceinline__ void weights(float (&s)[kTiles][4]) {
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      float top = fmaxf(fmaxf(s[h][0], s[h][1]), fmaxf(s[h][2], s[h][3]));
      if (__any_sync(kWarp, top > max_[h] + kSlack)) {
        top = fmaxf(top, __shfl_xor_sync(kWarp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kWarp, top, 2));
        const bool raise = top > max_[h] + kSlack;
        const float keep = raise ? exp2_fast(max_[h] - top) : 1.0f;
        if (raise) max_[h] = top;
        sum_[h] *= keep;
        const float even = __shfl_sync(kWarp, keep, 8 * t_), odd = __shfl_sync(kWarp, keep, 8 * t_ + 4);
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          out_[h][j][0] *= even;
          out_[h][j][1] *= odd;
          out_[h][j][2] *= even;
          out_[h][j][3] *= odd;
        }
      }
      const float base = max_[h] == -INFINITY ? 0.0f : max_[h] - kLift;
#pragma unroll
      for (int c = 0; c < 4; ++c) s[h][c] = exp2_fast(s[h][c] - base);
      sum_[h] += (s[h][0] + s[h][1]) + (s[h][2] + s[h][3]);
    }
  }

  template <typename Type>
  __device__ __forceinline__ void add(int j, std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                      const std::uint32_t (&p)[kTiles][2]) {
#pragma unroll
    for (int h = 0; h < kTiles; ++h) multiply_add<Type>(out_[h][j], a0, a1, a2, a3, p[h][0], p[h][1]);
  }

  // Outputs from dims g, g + 8 to dims 2g, 2g + 1 of each 16.
  __device__ __forceinline__ void pair() {
    if (paired_) return;
    paired_ = true;
    const int near = 2 * g_ % 8 * 4 + t_, far = near + 4;
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float low = out_[h][j][c], high = out_[h][j][2 + c];
          const float a = __shfl_sync(kWarp, low, near), b = __shfl_sync(kWarp, high, near);
          const float d = __shfl_sync(kWarp, low, far), e = __shfl_sync(kWarp, high, far);
          out_[h][j][c] = g_ < 4 ? a : b;
          out_[h][j][2 + c] = g_ < 4 ? d : e;
        }
      }
    }
  }

  int lane_, g_, t_;
  bool paired_ = kBytes;
  float cap_;
  std::uint32_t q_[kSteps][4];
  float factor_[kTiles];
  float max_[kTiles], sum_[kTiles];  // maximum, give or take kSlack: all lanes of a head; sum: the lane's tokens
  float out_[kTiles][kSteps][4];
};

}  // namespace tactic::cuda
