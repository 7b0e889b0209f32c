// From the clusters k-means found to what a segment keeps: centroids, spread, mean V, pooled covariance.
#include <cmath>

#include "cluster/batch.h"
#include "cluster/segment.h"

namespace tactic {
namespace {

// Residuals k - centroid(k) of consecutive clusters, on their way into a sum of outer products.
struct Residuals {
  const Batch& batch;
  float* rows;      // [kBlockRows + kRowPadding, d]
  float* products;  // [d, d]
  int filled = 0;

  void flush() {
    batch.kernels.outer(rows, filled, batch.dim, products);
    filled = 0;
  }
  void add(const std::byte* key, const float* centroid) {
    batch.kernels.load_row(key, batch.kv.k.type, batch.dim, centroid, rows + static_cast<std::ptrdiff_t>(filled) * batch.dim);
    if (++filled == kBlockRows) flush();
  }
};

// Sum over the tokens of |y - mean y|^2, mean y being made here.
double scatter(const Batch& batch, const BatchHead& head, std::span<const std::int32_t> tokens, BatchLocal& local) {
  const auto pointer = [&](std::int32_t token) {
    return reinterpret_cast<const std::byte*>(head.y.data() + static_cast<std::ptrdiff_t>(token) * batch.dim);
  };
  sum_rows(batch.kernels, tokens, DType::f32, batch.dim, local, local.mean.data(), pointer);
  const float inverse = 1.0f / static_cast<float>(tokens.size());
  for (int i = 0; i < batch.dim; ++i) local.mean[i] *= inverse;
  double sum = 0;
  for (auto rest = tokens; !rest.empty();) {
    const auto part = rest.first(std::min<std::size_t>(rest.size(), kBlockRows));
    std::transform(part.begin(), part.end(), local.pointers.begin(), pointer);
    sum += batch.kernels.scatter(local.pointers.data(), static_cast<int>(part.size()), batch.dim, local.mean.data());
    rest = rest.subspan(part.size());
  }
  return sum;
}

void finish_cluster(Batch& batch, int h, int c, BatchLocal& local, Residuals& residuals) {
  const BatchHead& head = batch.heads[static_cast<std::size_t>(h)];
  HeadClusters& clusters = batch.clusters(h);
  const auto tokens =
      head.order.span().subspan(static_cast<std::size_t>(clusters.begin[c]), static_cast<std::size_t>(clusters.size(c)));
  const float inverse = 1.0f / static_cast<float>(tokens.size());
  const auto row_of = [&](const Rows& rows) {
    return
        [&batch, &rows, h](std::int32_t token) { return row(batch.kv, rows, batch.segment.first + token, batch.first_head + h); };
  };

  clusters.spread[c] = static_cast<float>(scatter(batch, head, tokens, local) * static_cast<double>(inverse));

  const auto key_of = row_of(batch.kv.k);
  sum_rows(batch.kernels, tokens, batch.kv.k.type, batch.dim, local, local.mean_k.data(), key_of);
  for (int i = 0; i < batch.dim; ++i) local.mean_k[i] *= inverse;
  store_centroid(clusters, c, local.mean_k.span());
  for (const std::int32_t token : tokens) residuals.add(key_of(token), local.mean_k.data());

  const int v_dim = batch.kv.v.dim;
  sum_rows(batch.kernels, tokens, batch.kv.v.type, v_dim, local, local.mean.data(), row_of(batch.kv.v));
  const auto mean_v = local.mean.span().first(static_cast<std::size_t>(v_dim));
  for (float& x : mean_v) x *= inverse;
  if (!std::all_of(mean_v.begin(), mean_v.end(), [](float x) { return std::isfinite(x); })) {
    batch.failed.store(true, std::memory_order_relaxed);
    return;
  }
  quantise_row(mean_v, clusters.mean_v.data() + static_cast<std::ptrdiff_t>(c) * v_dim, clusters.mean_v_scale.data() + c);

  for (std::size_t i = 0; i < tokens.size(); ++i) {
    clusters.tokens[static_cast<std::size_t>(clusters.begin[c]) + i] = static_cast<std::int32_t>(batch.segment.first) + tokens[i];
  }
}

// Piece p of a head: the clusters that begin in the p-th part of its tokens.
void finish_piece(Batch& batch, int h, int p, BatchLocal& local) {
  const auto begins = batch.clusters(h).begin.span().first(static_cast<std::size_t>(batch.count));
  const auto bound = [&](int piece) {
    const auto token = static_cast<std::int32_t>(batch.n * piece / batch.pieces);
    return static_cast<int>(std::lower_bound(begins.begin(), begins.end(), token) - begins.begin());
  };
  const std::ptrdiff_t square = static_cast<std::ptrdiff_t>(batch.dim) * batch.dim;
  Residuals residuals{batch, local.rows.data(), batch.heads[static_cast<std::size_t>(h)].products.data() + p * square};
  std::fill_n(residuals.products, square, 0.0f);
  const int last = bound(p + 1);
  for (int c = bound(p); c < last; ++c) finish_cluster(batch, h, c, local, residuals);
  residuals.flush();
}

// S = sum of the pieces / n, mirrored to both triangles. Rows are shared out.
void pool(Batch& batch, const Worker& worker) {
  const int d = batch.dim;
  const auto [begin, end] = worker.share(static_cast<std::int64_t>(batch.active) * d);
  for (std::int64_t item = begin; item < end; ++item) {
    const int h = static_cast<int>(item / d);
    const int i = static_cast<int>(item % d);
    Buffer<float>& covariance = batch.clusters(h).covariance;
    for (int j = 0; j <= i; ++j) {
      double sum = 0;
      for (int p = 0; p < batch.pieces; ++p) {
        sum +=
            static_cast<double>(batch.heads[static_cast<std::size_t>(h)].products[static_cast<std::size_t>((p * d + i) * d + j)]);
      }
      const auto value = static_cast<float>(sum / static_cast<double>(batch.n));
      covariance[static_cast<std::size_t>(i * d + j)] = value;
      covariance[static_cast<std::size_t>(j * d + i)] = value;
    }
  }
}

}  // namespace

void finish_clusters(Batch& batch, Worker& worker) {
  BatchLocal& local = batch.locals[static_cast<std::size_t>(worker.rank())];
  const int items = batch.active * batch.pieces;
  for (int item = batch.next_piece.fetch_add(1); item < items; item = batch.next_piece.fetch_add(1)) {
    finish_piece(batch, item / batch.pieces, item % batch.pieces, local);
  }
  worker.barrier();
  pool(batch, worker);
  for (int h = worker.rank(); h < batch.active; h += worker.size())
    batch.clusters(h).mean_spread = mean_spread(batch.clusters(h));
}

}  // namespace tactic
