// The inner loops of clustering in Highway, compiled once per instruction set: one register-tiled multiply under the
// distance (fused with its arg-max), the transform to the metric's space, and the sums of outer products.
#include "cluster/kernels.h"

#include <hwy/cache_control.h>

#include <limits>
#include <utility>

#include "core/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cluster/kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tactic {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using IntTag = hn::ScalableTag<std::int32_t>;
using Floats = hn::Vec<FloatTag>;
using Ints = hn::Vec<IntTag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(FloatTag()));

// Register tiles. 32 registers of AVX-512: 6 x 4 sums, 4 of b, 1 of a; a step of the depth then loads 10 operands for 24
// multiply-adds. 16 registers of AVX2 (and of the baseline): 6 x 2 sums, 2 of b, 1 of a. More than 4 (latency) x 2 (ports) sums
// keep two ports busy.
constexpr int kTileRows = 6;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
constexpr int kPanel = kTileVectors * kLanes;
// Outer products: rows of a tile are columns of the data; 8 divides every head_dim.
constexpr int kOuterRows = kLanes == 16 ? 8 : 4;
constexpr int kOuterVectors = 2;
// Tokens whose running maxima (2 vectors each, 6 KB on AVX-512) stay in L1 beside a panel of centroids (16 KB at d = 64).
constexpr int kBlockTokens = 48;
constexpr int kPrefetchRows = 8;  // rows gathered ahead: 1 to 2 KB of f16, the latency of L3 at one line a few cycles
static_assert(kTileRows <= kRowPadding && kBlockTokens % kTileRows == 0);

// sums[r][v] += sum over `depth` steps k of a[r * a_row + k * a_step] * b[k * b_step + v * kLanes ..].
template <int kRows, int kVectors>
HWY_INLINE void multiply(const float* HWY_RESTRICT a, std::ptrdiff_t a_row, std::ptrdiff_t a_step, const float* HWY_RESTRICT b,
                         std::ptrdiff_t b_step, std::ptrdiff_t depth, Floats (&sums)[kRows][kVectors]) {
  const FloatTag d;
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    Floats column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = hn::LoadU(d, b + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Floats scalar = hn::Set(d, a[r * a_row]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(scalar, column[v], sums[r][v]);
    }
    a += a_step;
    b += b_step;
  }
}

// Rows of a tile are visited by packs, not loops: arrays of vectors stay in registers only where no index is computed.
using TileRows = std::make_index_sequence<kTileRows>;
using OuterRows = std::make_index_sequence<kOuterRows>;

template <int kVectors>
HWY_INLINE void set_row(Floats (&sums)[kVectors], Floats value) {
  for (int v = 0; v < kVectors; ++v) sums[v] = value;
}

// ---- rows ------------------------------------------------------------------------------------------------------------

HWY_INLINE Floats load(const std::byte* row, DType type, int i) {
  const FloatTag d;
  if (type == DType::f32) return hn::LoadU(d, reinterpret_cast<const float*>(row) + i);
  if (type == DType::f16) {
    const hn::Rebind<hwy::float16_t, FloatTag> half;
    return hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(row) + i));
  }
  const hn::Rebind<hwy::bfloat16_t, FloatTag> brain;
  return hn::PromoteTo(d, hn::LoadU(brain, reinterpret_cast<const hwy::bfloat16_t*>(row) + i));
}

void load_row(const std::byte* row, DType type, int dim, const float* origin, float* out) {
  const FloatTag d;
  for (int i = 0; i < dim; i += kLanes) hn::StoreU(hn::Sub(load(row, type, i), hn::LoadU(d, origin + i)), d, out + i);
}

void scale_rows(float* rows, int count, int dim, const float* factor) {
  const FloatTag d;
  for (float* row = rows; row != rows + static_cast<std::ptrdiff_t>(count) * dim; row += dim) {
    for (int i = 0; i < dim; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, row + i), hn::LoadU(d, factor + i)), d, row + i);
  }
}

void norms(const float* rows, int count, int dim, float* norm) {
  const FloatTag d;
  for (int t = 0; t < count; ++t) {
    const float* row = rows + static_cast<std::ptrdiff_t>(t) * dim;
    Floats sum = hn::Zero(d);
    for (int i = 0; i < dim; i += kLanes) {
      const Floats x = hn::LoadU(d, row + i);
      sum = hn::MulAdd(x, x, sum);
    }
    norm[t] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

void add_rows(const std::byte* const* rows, int count, DType type, int dim, float* sum) {
  const FloatTag d;
  for (int t = 0; t < count; ++t) {
    if (t + kPrefetchRows < count) {
      const std::byte* ahead = rows[t + kPrefetchRows];
      for (std::size_t i = 0; i < static_cast<std::size_t>(dim) * size_of(type); i += 64) hwy::Prefetch(ahead + i);
    }
    for (int i = 0; i < dim; i += kLanes) hn::StoreU(hn::Add(hn::LoadU(d, sum + i), load(rows[t], type, i)), d, sum + i);
  }
}

double scatter(const std::byte* const* rows, int count, int dim, const float* mean) {
  const FloatTag d;
  double total = 0;
  for (int t = 0; t < count; ++t) {
    Floats sum = hn::Zero(d);
    for (int i = 0; i < dim; i += kLanes) {
      const Floats x = hn::Sub(load(rows[t], DType::f32, i), hn::LoadU(d, mean + i));
      sum = hn::MulAdd(x, x, sum);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

// ---- transform -------------------------------------------------------------------------------------------------------

template <int kVectors>
HWY_INLINE void store_row(const Floats (&sums)[kVectors], float* out) {
  for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], FloatTag(), out + v * kLanes);
}

// Columns j .. j + kVectors * kLanes of y for kTileRows rows; rows i < j of the factor are zero there.
template <int kVectors, std::size_t... kRow>
void transform_tile(const float* rows, int valid, int dim, const float* factor, int j, float* y, std::index_sequence<kRow...>) {
  Floats sums[kTileRows][kVectors];
  (set_row(sums[kRow], hn::Zero(FloatTag())), ...);
  multiply<kTileRows, kVectors>(rows + j, dim, 1, factor + static_cast<std::ptrdiff_t>(j) * dim + j, dim, dim - j, sums);
  ((static_cast<int>(kRow) < valid ? store_row(sums[kRow], y + static_cast<std::ptrdiff_t>(kRow) * dim + j) : void()), ...);
}

void transform(const float* rows, int count, int dim, const float* factor, float* y) {
  for (int t = 0; t < count; t += kTileRows) {
    const float* a = rows + static_cast<std::ptrdiff_t>(t) * dim;
    float* out = y + static_cast<std::ptrdiff_t>(t) * dim;
    const int valid = HWY_MIN(kTileRows, count - t);
    int j = 0;
    for (; j + kPanel <= dim; j += kPanel) transform_tile<kTileVectors>(a, valid, dim, factor, j, out, TileRows());
    for (; j < dim; j += kLanes) transform_tile<1>(a, valid, dim, factor, j, out, TileRows());
  }
}

// ---- assign ----------------------------------------------------------------------------------------------------------

template <int kVectors>
HWY_INLINE void load_row(Floats (&sums)[kVectors], const float* row) {
  for (int v = 0; v < kVectors; ++v) sums[v] = hn::LoadU(FloatTag(), row + v * kLanes);
}

// Strictly greater only: the lowest cluster of a lane wins a tie.
template <int kVectors>
HWY_INLINE void fold_row(const Floats (&sums)[kVectors], int first, float* score, std::int32_t* cluster) {
  const FloatTag d;
  const IntTag di;
  Floats best = hn::Load(d, score);
  Ints best_cluster = hn::Load(di, cluster);
  for (int v = 0; v < kVectors; ++v) {
    const auto better = hn::Gt(sums[v], best);
    best = hn::Max(sums[v], best);
    best_cluster = hn::IfThenElse(hn::RebindMask(di, better), hn::Set(di, first + v * kLanes), best_cluster);
  }
  hn::Store(best, d, score);
  hn::Store(best_cluster, di, cluster);
}

// Folds kVectors * kLanes columns (from cluster `first`) into the running maxima of kTileRows tokens: score [kTileRows, kLanes]
// and, in cluster, the number of the column in lane 0 of the vector that the maximum came from.
template <int kVectors, std::size_t... kRow>
void assign_tile(const float* y, int dim, const float* panel, const float* bias, int first, float* score, std::int32_t* cluster,
                 std::index_sequence<kRow...>) {
  Floats sums[kTileRows][kVectors];
  (load_row(sums[kRow], bias), ...);
  multiply<kTileRows, kVectors>(y, dim, 1, panel, kPanel, dim, sums);
  (fold_row(sums[kRow], first, score + kRow * kLanes, cluster + kRow * kLanes), ...);
}

void assign_panel(const float* y, int tiles, int dim, const float* panel, const float* bias, int first, int vectors, float* score,
                  std::int32_t* cluster) {
  for (int tile = 0; tile < tiles; ++tile) {
    switch (vectors) {
      case 1:
        assign_tile<1>(y, dim, panel, bias, first, score, cluster, TileRows());
        break;
      case 2:
        assign_tile<2>(y, dim, panel, bias, first, score, cluster, TileRows());
        break;
      case 3:
        assign_tile<HWY_MIN(3, kTileVectors)>(y, dim, panel, bias, first, score, cluster, TileRows());
        break;
      default:
        assign_tile<kTileVectors>(y, dim, panel, bias, first, score, cluster, TileRows());
    }
    y += static_cast<std::ptrdiff_t>(kTileRows) * dim;
    score += kTileRows * kLanes;
    cluster += kTileRows * kLanes;
  }
}

void assign(const float* y, int count, int dim, const float* packed, const float* bias, int clusters, std::int32_t* nearest,
            float* score) {
  const FloatTag d;
  const IntTag di;
  alignas(64) float block_score[kBlockTokens * kLanes];
  alignas(64) std::int32_t block_cluster[kBlockTokens * kLanes];
  const Ints lane = hn::Iota(di, 0);
  for (int t = 0; t < count; t += kBlockTokens) {
    const int valid = HWY_MIN(kBlockTokens, count - t);
    const int tiles = (valid + kTileRows - 1) / kTileRows;
    for (int i = 0; i < tiles * kTileRows; ++i) {
      hn::Store(hn::Set(d, -std::numeric_limits<float>::infinity()), d, block_score + i * kLanes);
      hn::Store(hn::Zero(di), di, block_cluster + i * kLanes);
    }
    for (int c = 0; c < clusters; c += kPanel) {
      const int vectors = HWY_MIN(kTileVectors, (clusters - c + kLanes - 1) / kLanes);
      assign_panel(y + static_cast<std::ptrdiff_t>(t) * dim, tiles, dim, packed + static_cast<std::ptrdiff_t>(c) * dim, bias + c,
                   c, vectors, block_score, block_cluster);
    }
    for (int i = 0; i < valid; ++i) {
      const Floats lanes = hn::Load(d, block_score + i * kLanes);
      const Floats best = hn::MaxOfLanes(d, lanes);
      const auto reached = hn::RebindMask(di, hn::Eq(lanes, best));
      const Ints reached_by = hn::Add(hn::Load(di, block_cluster + i * kLanes), lane);
      const Ints candidates = hn::IfThenElse(reached, reached_by, hn::Set(di, std::numeric_limits<std::int32_t>::max()));
      nearest[t + i] = hn::GetLane(hn::MinOfLanes(di, candidates));
      score[t + i] = hn::GetLane(best);
    }
  }
}

// ---- outer products --------------------------------------------------------------------------------------------------

HWY_INLINE void add_to(Floats sum, float* out) {
  const FloatTag d;
  hn::StoreU(hn::Add(hn::LoadU(d, out), sum), d, out);
}
HWY_INLINE void add_to(Floats sum, double* out) {
  alignas(64) float lanes[kLanes];
  hn::Store(sum, FloatTag(), lanes);
  for (int i = 0; i < kLanes; ++i) out[i] += static_cast<double>(lanes[i]);
}

template <int kVectors, typename T>
HWY_INLINE void add_row_to(const Floats (&sums)[kVectors], T* out) {
  for (int v = 0; v < kVectors; ++v) add_to(sums[v], out + v * kLanes);
}

template <int kVectors, typename T, std::size_t... kRow>
void outer_tile(const float* rows, int count, int dim, int i, int j, T* sum, std::index_sequence<kRow...>) {
  Floats sums[kOuterRows][kVectors];
  (set_row(sums[kRow], hn::Zero(FloatTag())), ...);
  multiply<kOuterRows, kVectors>(rows + i, 1, dim, rows + j, dim, count, sums);
  (add_row_to(sums[kRow], sum + (i + static_cast<std::ptrdiff_t>(kRow)) * dim + j), ...);
}

template <typename T>
void outer(const float* rows, int count, int dim, T* sum) {
  int j = 0;
  for (; j + kOuterVectors * kLanes <= dim; j += kOuterVectors * kLanes) {
    for (int i = j - j % kOuterRows; i < dim; i += kOuterRows)
      outer_tile<kOuterVectors>(rows, count, dim, i, j, sum, OuterRows());
  }
  for (; j < dim; j += kLanes) {
    for (int i = j - j % kOuterRows; i < dim; i += kOuterRows) outer_tile<1>(rows, count, dim, i, j, sum, OuterRows());
  }
}

}  // namespace

extern const ClusterKernels kClusterKernels;
const ClusterKernels kClusterKernels = {kPanel, load_row, transform, scale_rows,   norms,
                                        assign, add_rows, scatter,   outer<float>, outer<double>};

}  // namespace HWY_NAMESPACE
}  // namespace tactic
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tactic {

const ClusterKernels& cluster_kernels() {
  switch (active_isa()) {
#if HWY_TARGETS & HWY_AVX3
    case Isa::avx512:
      return N_AVX3::kClusterKernels;
#endif
#if HWY_TARGETS & HWY_AVX2
    case Isa::avx2:
      return N_AVX2::kClusterKernels;
#endif
    default:
      return HWY_STATIC_DISPATCH(kClusterKernels);
  }
}

}  // namespace tactic
#endif  // HWY_ONCE
