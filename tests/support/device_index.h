// Host clusters (LayerIndex) as a DeviceIndex, one per sequence of a batch, and back.
#pragma once

#include "support/device.h"
#include "support/layer.h"

namespace tactic::test {

// What the device holds in bf16 becomes exactly representable on the host, so that both sides choose from the same numbers.
inline void round_to_device(LayerIndex& index) {
  std::vector<std::shared_ptr<const Segment>> rounded;
  for (const auto& segment : index.segments) {
    auto copy = std::make_shared<Segment>(*segment);
    for (HeadClusters& head : copy->heads) {
      for (std::uint16_t& x : head.centroid16) x = float_to_half(bf16_to_float(float_to_bf16(half_to_float(x))));
      if (head.mean_spread <= 0) continue;  // all keys lie on their centroids
      for (float& x : head.covariance) x = bf16_to_float(float_to_bf16(x / head.mean_spread)) * head.mean_spread;
    }
    rounded.push_back(copy);
  }
  const std::size_t heads = index.tables.size();
  index.segments = rounded;
  index.tables.clear();
  for (std::size_t h = 0; h < heads; ++h) index.tables.push_back(make_table(index.segments, static_cast<int>(h)));
}

// Columns [first, last) of a (sequence, head) of a device's index as the host's structure; the covariance is of `part`.
inline HeadClusters fetch_columns(const DeviceIndex& index, const Shape& shape, std::size_t slot, std::size_t part, int first,
                                  int last) {
  const auto dim = static_cast<std::size_t>(shape.head_dim), v_dim = static_cast<std::size_t>(shape.v_head_dim);
  const auto capacity = static_cast<std::size_t>(index.capacity), count = static_cast<std::size_t>(last - first);
  const std::size_t at = slot * capacity + static_cast<std::size_t>(first);
  HeadClusters out;
  out.count = last - first;
  auto begin = fetch(index.begin + slot * (capacity + 64) + static_cast<std::size_t>(first), count + 1);
  const std::int32_t token = begin[0];
  for (std::int32_t& b : begin) b -= token;
  out.begin.assign(begin);
  out.tokens.assign(fetch(index.tokens + slot * static_cast<std::size_t>(index.token_capacity) + static_cast<std::size_t>(token),
                          static_cast<std::size_t>(begin[count])));
  if (index.int8_centroids) {
    out.centroid8.assign(fetch(index.centroid8 + at * dim, count * dim));
    out.centroid_scale.assign(fetch(index.centroid_scale + at, count));
  } else {
    const auto centroids = fetch(index.centroid16 + at * dim, count * dim);
    out.centroid16.resize(centroids.size());
    for (std::size_t i = 0; i < centroids.size(); ++i) out.centroid16[i] = float_to_half(bf16_to_float(centroids[i]));
  }
  out.spread.assign(fetch(index.spread + at, count));
  out.mean_v.assign(fetch(index.mean_v + at * v_dim, count * v_dim));
  out.mean_v_scale.assign(fetch(index.mean_v_scale + at, count));
  double spread = 0;
  for (std::size_t c = 0; c < count; ++c) spread += static_cast<double>(out.spread[c]) * (begin[c + 1] - begin[c]);
  out.mean_spread = static_cast<float>(spread / std::max(begin[count], 1));
  const auto covariance =
      fetch(index.shape + (slot * static_cast<std::size_t>(index.part_capacity) + part) * dim * dim, dim * dim);
  out.covariance.resize(dim * dim);
  for (std::size_t i = 0; i < dim * dim; ++i) out.covariance[i] = bf16_to_float(covariance[i]) * out.mean_spread;
  return out;
}

// All clusters of one sequence; a segment for every part.
inline LayerIndex fetch_layer(const DeviceIndex& index, const Shape& shape, int sequence) {
  LayerIndex layer;
  const auto range = fetch(index.range + 2 * sequence, 2);
  const auto parts = static_cast<std::size_t>(fetch(index.parts + sequence, 1)[0]);
  std::int64_t first = range[0];
  for (std::size_t part = 0; part < parts; ++part) {
    auto segment = std::make_shared<Segment>();
    segment->head_dim = shape.head_dim, segment->v_head_dim = shape.v_head_dim;
    for (int h = 0; h < shape.kv_heads; ++h) {
      const auto slot = static_cast<std::size_t>(sequence * shape.kv_heads + h);
      const auto columns = fetch(index.part_begin + slot * (static_cast<std::size_t>(index.part_capacity) + 1) + part, 2);
      segment->heads.push_back(fetch_columns(index, shape, slot, part, columns[0], columns[1]));
    }
    segment->first = first, segment->last = first + static_cast<std::int64_t>(segment->heads[0].tokens.size());
    first = segment->last;
    layer.segments.push_back(segment);
  }
  for (int h = 0; h < shape.kv_heads; ++h) layer.tables.push_back(make_table(layer.segments, h));
  return layer;
}

class DeviceColumns {
 public:
  // Capacities are those of the largest, plus `spare` columns of poison. All segments of a sequence are parts of their own.
  DeviceColumns(const std::vector<const LayerIndex*>& layers, const Shape& shape, int spare = 64) : shape_(shape) {
    for (const LayerIndex* layer : layers) {
      index_.part_capacity = std::max(index_.part_capacity, static_cast<std::int32_t>(layer->segments.size()));
      for (const HeadTable& table : layer->tables) {
        index_.capacity = std::max(index_.capacity, table.count + spare);
        index_.token_capacity = std::max(index_.token_capacity, static_cast<std::int32_t>(table.token_count));
      }
    }
    index_.capacity = (index_.capacity + 63) / 64 * 64;
    index_.token_capacity = (index_.token_capacity + 63) / 64 * 64;
    index_.int8_centroids = !layers[0]->segments[0]->heads[0].centroid8.empty();
    reserve(layers.size());
    for (std::size_t s = 0; s < layers.size(); ++s) fill(s, *layers[s]);
    upload();
  }
  const DeviceIndex& index() const { return index_; }

  // The same device memory with other contents, as after a reclustering; captured graphs go on.
  void refill(const std::vector<const LayerIndex*>& layers) {
    reserve(layers.size());
    for (std::size_t s = 0; s < layers.size(); ++s) fill(s, *layers[s]);
    d_clusters_.set(clusters_), d_range_.set(range_), d_parts_.set(parts_);
    if (index_.int8_centroids) {
      d_centroid8_.set(centroid8_), d_scale_.set(scale_);
    } else {
      d_centroid16_.set(centroid16_);
    }
    d_spread_.set(spread_), d_begin_.set(begin_), d_tokens_.set(tokens_), d_mean_v_.set(mean_v_),
        d_mean_v_scale_.set(mean_v_scale_);
    d_part_begin_.set(part_begin_), d_metric_.set(metric_);
  }

 private:
  std::size_t slot(std::size_t s, int h) const {
    return s * static_cast<std::size_t>(shape_.kv_heads) + static_cast<std::size_t>(h);
  }

  void reserve(std::size_t sequences) {
    const std::size_t slots = sequences * static_cast<std::size_t>(shape_.kv_heads);
    const auto columns = slots * static_cast<std::size_t>(index_.capacity);
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    const auto parts = static_cast<std::size_t>(index_.part_capacity);
    clusters_.assign(slots, 0), range_.assign(2 * sequences, 0), parts_.assign(sequences, 0);
    centroid8_.assign(columns * dim, 0), scale_.assign(columns, 0), centroid16_.assign(columns * dim, 0),
        spread_.assign(columns, 0);
    begin_.assign(slots * (static_cast<std::size_t>(index_.capacity) + 64), 0);
    tokens_.assign(slots * static_cast<std::size_t>(index_.token_capacity), 0);
    mean_v_.assign(columns * static_cast<std::size_t>(shape_.v_head_dim), 0), mean_v_scale_.assign(columns, 0);
    part_begin_.assign(slots * (parts + 1), 0), metric_.assign(slots * parts * dim * dim, 0);
  }

  void fill(std::size_t s, const LayerIndex& layer) {
    range_[2 * s] = static_cast<std::int32_t>(layer.first()), range_[2 * s + 1] = static_cast<std::int32_t>(layer.last());
    parts_[s] = static_cast<std::int32_t>(layer.segments.size());
    for (int h = 0; h < shape_.kv_heads; ++h) {
      int column = 0;
      std::int32_t token = 0;
      for (std::size_t p = 0; p < layer.segments.size(); ++p) {
        part_begin_[slot(s, h) * (static_cast<std::size_t>(index_.part_capacity) + 1) + p] = column;
        add(s, h, p, layer.segments[p]->heads[static_cast<std::size_t>(h)], column, token);
      }
      part_begin_[slot(s, h) * (static_cast<std::size_t>(index_.part_capacity) + 1) + layer.segments.size()] = column;
      clusters_[slot(s, h)] = column;
    }
  }

  void add(std::size_t s, int h, std::size_t part, const HeadClusters& from, int& column, std::int32_t& token) {
    const auto dim = static_cast<std::size_t>(shape_.head_dim), v_dim = static_cast<std::size_t>(shape_.v_head_dim);
    const std::size_t at = slot(s, h) * static_cast<std::size_t>(index_.capacity) + static_cast<std::size_t>(column);
    std::int32_t* begin = begin_.data() + slot(s, h) * (static_cast<std::size_t>(index_.capacity) + 64);
    std::copy(from.tokens.begin(), from.tokens.end(),
              tokens_.begin() + static_cast<std::ptrdiff_t>(slot(s, h)) * index_.token_capacity + token);
    for (int c = 0; c <= from.count; ++c) begin[column + c] = token + from.begin[static_cast<std::size_t>(c)];
    std::copy(from.spread.begin(), from.spread.begin() + from.count, spread_.begin() + static_cast<std::ptrdiff_t>(at));
    const auto count = static_cast<std::size_t>(from.count);
    if (index_.int8_centroids) {
      std::copy_n(from.centroid8.data(), count * dim, centroid8_.data() + at * dim);
      std::copy_n(from.centroid_scale.data(), count, scale_.data() + at);
    } else {
      for (std::size_t i = 0; i < count * dim; ++i) centroid16_[at * dim + i] = float_to_bf16(half_to_float(from.centroid16[i]));
    }
    std::copy_n(from.mean_v.data(), count * v_dim, mean_v_.data() + at * v_dim);
    std::copy_n(from.mean_v_scale.data(), count, mean_v_scale_.data() + at);
    std::uint16_t* metric = metric_.data() + (slot(s, h) * static_cast<std::size_t>(index_.part_capacity) + part) * dim * dim;
    for (std::size_t i = 0; i < dim * dim && from.mean_spread > 0; ++i)
      metric[i] = float_to_bf16(from.covariance[i] / from.mean_spread);
    column += from.count;
    token += static_cast<std::int32_t>(from.tokens.size());
  }

  template <class T>
  static T* send(const std::vector<T>& host, DeviceArray<T>& device) {
    device = DeviceArray<T>(host);
    return device.get();
  }
  void upload() {
    index_.clusters = send(clusters_, d_clusters_), index_.range = send(range_, d_range_), index_.parts = send(parts_, d_parts_);
    if (index_.int8_centroids) {
      index_.centroid8 = send(centroid8_, d_centroid8_), index_.centroid_scale = send(scale_, d_scale_);
    } else {
      index_.centroid16 = send(centroid16_, d_centroid16_);
    }
    index_.spread = send(spread_, d_spread_), index_.begin = send(begin_, d_begin_), index_.tokens = send(tokens_, d_tokens_);
    index_.mean_v = send(mean_v_, d_mean_v_), index_.mean_v_scale = send(mean_v_scale_, d_mean_v_scale_);
    index_.part_begin = send(part_begin_, d_part_begin_), index_.shape = send(metric_, d_metric_);
  }

  Shape shape_;
  DeviceIndex index_;
  std::vector<std::int32_t> clusters_, range_, begin_, tokens_, parts_, part_begin_;
  std::vector<std::int8_t> centroid8_, mean_v_;
  std::vector<float> scale_, spread_, mean_v_scale_;
  std::vector<std::uint16_t> centroid16_, metric_;
  DeviceArray<std::int32_t> d_clusters_, d_range_, d_begin_, d_tokens_, d_parts_, d_part_begin_;
  DeviceArray<std::int8_t> d_centroid8_, d_mean_v_;
  DeviceArray<float> d_scale_, d_spread_, d_mean_v_scale_;
  DeviceArray<std::uint16_t> d_centroid16_, d_metric_;
};

}  // namespace tactic::test
