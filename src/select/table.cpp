// The flat table of one KV head's clusters over all segments, with centroids packed for the rank kernel.
#include <cassert>
#include <cstddef>

#include "core/half.h"
#include "select/select.h"

namespace tactic {
namespace {

constexpr int kBlock = 16;  // columns of a packed block: the lanes of the widest f32 vector

float centroid_value(const HeadClusters& clusters, int c, int dim, int i) {
  const std::size_t at = static_cast<std::size_t>(c) * static_cast<std::size_t>(dim) + static_cast<std::size_t>(i);
  return clusters.centroid16.empty() ? clusters.centroid_scale[c] * clusters.centroid8[at]
                                     : half_to_float(clusters.centroid16[at]);
}

// Place of dim i of column c in packed8 and packed16.
std::size_t place8(int dim, int c, int i) {
  return static_cast<std::size_t>(c / kBlock * dim / 2 + i / 2) * 2 * kBlock + static_cast<std::size_t>(c % kBlock * 2 + i % 2);
}
std::size_t place16(int dim, int c, int i) {
  return static_cast<std::size_t>(c / kBlock * dim + i) * kBlock + static_cast<std::size_t>(c % kBlock);
}

void pack8(HeadTable& table) {
  table.packed8.resize(static_cast<std::size_t>(table.stride) * table.head_dim);
  table.packed8.fill(0);
  table.centroid_scale.resize(table.stride);
  table.centroid_scale.fill(0);
  for (const auto& part : table.parts) {
    for (int c = 0; c < part.clusters->count; ++c) {
      table.centroid_scale[part.first + c] = part.clusters->centroid_scale[c];
      const std::int8_t* from = part.clusters->centroid8.data() + static_cast<std::size_t>(c) * table.head_dim;
      for (int i = 0; i < table.head_dim; ++i) table.packed8[place8(table.head_dim, part.first + c, i)] = from[i];
    }
  }
}

void pack16(HeadTable& table) {
  table.packed16.resize(static_cast<std::size_t>(table.stride) * table.head_dim);
  table.packed16.fill(0);
  for (const auto& part : table.parts) {
    for (int c = 0; c < part.clusters->count; ++c) {
      for (int i = 0; i < table.head_dim; ++i) {
        table.packed16[place16(table.head_dim, part.first + c, i)] =
            float_to_half(centroid_value(*part.clusters, c, table.head_dim, i));
      }
    }
  }
}

// Also where clusters came without one, as tests make them.
void pack_covariance(const HeadTable::Part& part, int dim, std::uint16_t* out, float* unit) {
  const HeadClusters& clusters = *part.clusters;
  const Buffer<float>& from = clusters.covariance;
  *unit = 0;
  if (!(clusters.mean_spread > 0) || from.size() < static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim)) return;
  double trace = 0;
  for (int i = 0; i < dim; ++i) trace += from[static_cast<std::size_t>(i * dim + i)];
  if (!(trace > 0)) return;
  const auto inverse = static_cast<float>(dim / trace);
  constexpr int kSide = HeadTable::kCovarianceSide;
  for (int row = 0; row < dim; row += kSide) {
    for (int column = row; column < dim; column += kSide) {
      for (int i = 0; i < kSide * kSide; ++i) {
        *out++ = float_to_half(inverse * from[static_cast<std::size_t>((row + i / kSide) * dim + column + i % kSide)]);
      }
    }
  }
  *unit = static_cast<float>(trace / dim / clusters.mean_spread);
}

}  // namespace

HeadTable make_table(std::span<const std::shared_ptr<const Segment>> segments, int kv_head) {
  HeadTable table;
  bool half = false;
  for (const auto& segment : segments) {
    const HeadClusters& clusters = segment->heads[kv_head];
    assert(table.head_dim == 0 || table.head_dim == segment->head_dim);
    table.head_dim = segment->head_dim;
    table.parts.push_back({&clusters, segment, table.count});
    table.count += clusters.count;
    table.token_count += segment->last - segment->first;
    half = half || !clusters.centroid16.empty();
  }
  table.stride = (table.count + kBlock - 1) / kBlock * kBlock;
  table.size.resize(table.stride);
  table.size.fill(0);
  table.spread.resize(table.stride);
  table.spread.fill(0);
  table.part_of.resize(table.stride);
  table.part_of.fill(0);
  table.tokens.reserve(table.count);
  table.first_token = segments.empty() ? 0 : segments.front()->first;
  table.column_of.resize(static_cast<std::size_t>(table.token_count));
  for (std::size_t p = 0; p < table.parts.size(); ++p) {
    const HeadClusters& clusters = *table.parts[p].clusters;
    for (int c = 0; c < clusters.count; ++c) {
      const int column = table.parts[p].first + c;
      table.size[column] = static_cast<float>(clusters.size(c));
      table.spread[column] = clusters.spread[c];
      table.part_of[column] = static_cast<std::int32_t>(p);
      table.tokens.emplace_back(clusters.tokens.data() + clusters.begin[c], static_cast<std::size_t>(clusters.size(c)));
      for (const std::int32_t token : table.tokens.back()) table.column_of[token - table.first_token] = column;
    }
  }
  half ? pack16(table) : pack8(table);
  const auto size = static_cast<std::size_t>(covariance_size(table.head_dim));
  table.covariance16.resize(table.parts.size() * size);
  table.covariance_unit.resize(table.parts.size());
  for (std::size_t p = 0; p < table.parts.size(); ++p) {
    pack_covariance(table.parts[p], table.head_dim, table.covariance16.data() + p * size, &table.covariance_unit[p]);
  }
  return table;
}

std::vector<HeadTable> make_tables(std::span<const std::shared_ptr<const Segment>> segments) {
  std::vector<HeadTable> tables;
  if (segments.empty()) return tables;
  const int heads = static_cast<int>(segments.front()->heads.size());
  for (int h = 0; h < heads; ++h) tables.push_back(make_table(segments, h));
  return tables;
}

}  // namespace tactic
