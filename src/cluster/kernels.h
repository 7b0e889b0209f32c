// The inner loops of clustering, one table of them per instruction set.
//
// All matrices are row-major f32. `dim` is a multiple of 16. "Padded rows": kRowPadding rows behind the last may be read
// (any value), since tiles have a fixed height.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace tactic {

struct ClusterKernels {
  // Centroids are packed for assign() in panels of `panel` columns: element k of centroid c is at
  // packed[((c / panel) * dim + k) * panel + c % panel]. Columns behind the last centroid: finite, with a bias of -inf.
  int panel = 0;

  // out [dim] = row - origin. Bytes: dim * size_of(type).
  void (*load_row)(const std::byte* row, DType type, int dim, const float* origin, float* out);
  // y [count, dim] = rows * factor (each row: L^T k), factor L [dim, dim] lower triangular; rows are padded.
  // Multiply-adds: count * dim * (dim + 64) / 2.
  void (*transform)(const float* rows, int count, int dim, const float* factor, float* y);
  // y = row * factor [dim], element by element, in place.
  void (*scale_rows)(float* rows, int count, int dim, const float* factor);
  // norm [count] = |row|^2.
  void (*norms)(const float* rows, int count, int dim, float* norm);
  // nearest [count] = argmax over c < clusters of score = y . centroid_c + bias_c, the lowest c of equal ones; score [count].
  // With bias = -|centroid|^2 / 2 that is the nearest centroid: |y - c|^2 = |y|^2 - 2 score. y is padded; bias is readable to a
  // multiple of 16. Multiply-adds: count * clusters * dim.
  void (*assign)(const float* y, int count, int dim, const float* packed, const float* bias, int clusters, std::int32_t* nearest,
                 float* score);
  // sum [dim] += the rows.
  void (*add_rows)(const std::byte* const* rows, int count, DType type, int dim, float* sum);
  // Sum over the (f32) rows of |row - mean|^2.
  double (*scatter)(const std::byte* const* rows, int count, int dim, const float* mean);
  // sum [dim, dim] += rows^T rows, in the lower triangle (elements above it are undefined afterwards).
  // Multiply-adds: count * dim * (dim + 32) / 2.
  void (*outer)(const float* rows, int count, int dim, float* sum);
  void (*outer_double)(const float* rows, int count, int dim, double* sum);
};

constexpr int kRowPadding = 8;

// Of active_isa().
const ClusterKernels& cluster_kernels();

}  // namespace tactic
