// The KV heads that a team clusters together, with their scratch, and the SPMD stages over them.
//
// Nothing depends on the number of workers: scores are independent of each other, and every sum is made by one worker, in
// ascending token order, over one cluster or over one of a number of pieces that n alone fixes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "cluster/cluster.h"
#include "cluster/kernels.h"
#include "core/buffer.h"
#include "core/team.h"

namespace tactic {

// Scratch of one KV head.
struct BatchHead {
  Buffer<float> y;               // [n + kRowPadding, d] keys in the metric's space, relative to the origin
  Buffer<float> origin;          // [d] a mean of keys: a large part that all keys share would cost the distance its digits
  Buffer<float> norm;            // [n] |y|^2
  Buffer<float> score;           // [n] y . centroid - |centroid|^2 / 2 of the nearest
  Buffer<std::int32_t> nearest;  // [n]
  Buffer<std::int32_t> order;    // [n] tokens of the segment: first the random draw, then cluster by cluster
  Buffer<std::int32_t> sizes;    // [C]
  Buffer<std::int32_t> cursor;   // [C]
  Buffer<float> packed;          // centroids as ClusterKernels::assign wants them
  Buffer<float> bias;            // [C rounded up to a panel]
  Buffer<float> products;        // [pieces, d, d] sums of residual outer products
  std::atomic<std::int64_t> moved{0};
  int count = 0;  // clusters that tokens are assigned to: those drawn, at last all
  bool done = false;
};

// Scratch of one worker.
struct BatchLocal {
  Buffer<float> rows;                      // [kBlockRows + kRowPadding, d]
  Buffer<float> mean;                      // [max(d, v_head_dim)]
  Buffer<float> partial;                   // the same
  Buffer<float> mean_k;                    // [d]
  std::vector<const std::byte*> pointers;  // [kBlockRows]
};

struct Batch {
  // Scratch for up to `capacity` KV heads and for `workers` workers. Allocates everything.
  Batch(const KvView& kv_view, std::span<const MetricSpace> head_metrics, const ClusterOptions& cluster_options, Segment& target,
        int capacity, int workers);

  const KvView& kv;
  std::span<const MetricSpace> metrics;
  const ClusterOptions& options;
  Segment& segment;
  const ClusterKernels& kernels;
  std::int64_t n;  // tokens
  int dim;         // d
  int count;       // C
  int drawn;       // of them at the start
  int pieces;      // of a head's clusters in finish_clusters
  int first_head = 0;
  int active = 0;  // KV heads first_head .. first_head + active - 1 are in work
  std::vector<BatchHead> heads;
  std::vector<BatchLocal> locals;
  std::atomic<int> next_piece{0};
  std::atomic<bool> failed{false};  // K or V is not finite

  HeadClusters& clusters(int h) { return segment.heads[static_cast<std::size_t>(first_head + h)]; }
};

constexpr int kBlockRows = 64;  // rows at a time: 64 KB of f32 at d = 256; also bounds the error of long f32 sums

// Bytes of scratch a KV head takes.
std::size_t batch_head_bytes(std::int64_t tokens, int count, int dim, int pieces);
int batch_pieces(std::int64_t tokens);

// SPMD: k-means; leaves begin, order and y. Ends in a barrier. False, on all workers: K is not finite.
bool cluster_keys(Batch& batch, Worker& worker);
// SPMD: centroids, spread, mean V, covariance, tokens of the clusters found.
void finish_clusters(Batch& batch, Worker& worker);

// sum [dim] = 0 + the rows of the given tokens; pointer(token) is the row's address.
template <typename Pointer>
void sum_rows(const ClusterKernels& kernels, std::span<const std::int32_t> tokens, DType type, int dim, BatchLocal& local,
              float* sum, Pointer&& pointer) {
  std::fill_n(sum, dim, 0.0f);
  while (!tokens.empty()) {
    const auto part = tokens.first(std::min<std::size_t>(tokens.size(), kBlockRows));
    std::transform(part.begin(), part.end(), local.pointers.begin(), pointer);
    std::fill_n(local.partial.data(), dim, 0.0f);
    kernels.add_rows(local.pointers.data(), static_cast<int>(part.size()), type, dim, local.partial.data());
    for (int i = 0; i < dim; ++i) sum[i] += local.partial[i];
    tokens = tokens.subspan(part.size());
  }
}

}  // namespace tactic
