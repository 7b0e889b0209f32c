// k-means of a batch of KV heads on a team: random keys as start, assignment, repair, update (paper 4.2), outliers at last.
#include <cmath>
#include <limits>

#include "cluster/batch.h"
#include "cluster/segment.h"

namespace tactic {
namespace {

// Clusters one worker updates at a time: their packed columns fill whole cache lines on every ISA.
constexpr int kUnit = 16;
// Keys whose mean is the origin: any point among the keys will do.
constexpr int kOriginKeys = 256;

// f(h, first, last): this worker's share of all tokens of all heads that are not done.
template <typename F>
void for_tokens(Batch& batch, const Worker& worker, F&& f) {
  const auto [begin, end] = worker.share(batch.active * batch.n);
  for (int h = 0; h < batch.active; ++h) {
    const std::int64_t first = std::max<std::int64_t>(0, begin - h * batch.n);
    const std::int64_t last = std::min<std::int64_t>(batch.n, end - h * batch.n);
    if (first < last && !batch.heads[static_cast<std::size_t>(h)].done) f(h, first, last);
  }
}

// f(h): heads dealt out whole, for the stages that are serial in a head.
template <typename F>
void for_heads(Batch& batch, const Worker& worker, F&& f) {
  for (int h = worker.rank(); h < batch.active; h += worker.size()) f(h);
}

// The random draw and the origin.
void start(Batch& batch, const Worker& worker) {
  for_heads(batch, worker, [&](int h) {
    BatchHead& head = batch.heads[static_cast<std::size_t>(h)];
    BatchLocal& local = batch.locals[static_cast<std::size_t>(worker.rank())];
    head.done = false;
    head.count = batch.drawn;
    head.moved = 0;
    head.nearest.fill(-1);
    head.bias.fill(-std::numeric_limits<float>::infinity());  // columns not in use yet may hold another head's clusters
    draw_tokens(batch.options.seed, batch.first_head + h, batch.drawn, head.order.span());
    const auto keys = head.order.span().first(static_cast<std::size_t>(std::min(batch.drawn, kOriginKeys)));
    sum_rows(batch.kernels, keys, batch.kv.k.type, batch.dim, local, head.origin.data(),
             [&](std::int32_t token) { return row(batch.kv, batch.kv.k, batch.segment.first + token, batch.first_head + h); });
    for (float& x : head.origin) x /= static_cast<float>(keys.size());
  });
}

// y = L^T (k - origin).
void load(Batch& batch, const Worker& worker) {
  BatchLocal& local = batch.locals[static_cast<std::size_t>(worker.rank())];
  for_tokens(batch, worker, [&](int h, std::int64_t first, std::int64_t last) {
    BatchHead& head = batch.heads[static_cast<std::size_t>(h)];
    const MetricSpace& metric = batch.metrics[static_cast<std::size_t>(batch.first_head + h)];
    for (std::int64_t t = first; t < last; t += kBlockRows) {
      const int rows = static_cast<int>(std::min<std::int64_t>(kBlockRows, last - t));
      float* y = head.y.data() + t * batch.dim;
      float* k = metric.kind == Metric::query ? local.rows.data() : y;
      for (int i = 0; i < rows; ++i) {
        const std::byte* source = row(batch.kv, batch.kv.k, batch.segment.first + t + i, batch.first_head + h);
        batch.kernels.load_row(source, batch.kv.k.type, batch.dim, head.origin.data(),
                               k + static_cast<std::ptrdiff_t>(i) * batch.dim);
      }
      if (metric.kind == Metric::query) batch.kernels.transform(k, rows, batch.dim, metric.factor.data(), y);
      if (metric.kind == Metric::diagonal) batch.kernels.scale_rows(y, rows, batch.dim, metric.factor.data());
      batch.kernels.norms(y, rows, batch.dim, head.norm.data() + t);
    }
    const bool finite = std::all_of(head.norm.data() + first, head.norm.data() + last, [](float x) { return std::isfinite(x); });
    if (!finite) batch.failed.store(true, std::memory_order_relaxed);
  });
}

void pack(const Batch& batch, BatchHead& head, int c, const float* centroid) {
  const int panel = batch.kernels.panel;
  float* out = head.packed.data() + static_cast<std::ptrdiff_t>(c / panel) * panel * batch.dim + c % panel;
  double square = 0;
  for (int k = 0; k < batch.dim; ++k) {
    out[static_cast<std::ptrdiff_t>(k) * panel] = centroid[k];
    square += static_cast<double>(centroid[k]) * static_cast<double>(centroid[k]);
  }
  head.bias[static_cast<std::size_t>(c)] = static_cast<float>(-0.5 * square);
}

// The drawn keys as centroids.
void seed(Batch& batch, const Worker& worker) {
  const int units = (batch.drawn + kUnit - 1) / kUnit;
  const auto [begin, end] = worker.share(static_cast<std::int64_t>(batch.active) * units);
  for (std::int64_t i = begin; i < end; ++i) {
    BatchHead& head = batch.heads[static_cast<std::size_t>(i / units)];
    const int first = static_cast<int>(i % units) * kUnit;
    for (int c = first; c < std::min(batch.drawn, first + kUnit); ++c) {
      pack(batch, head, c, head.y.data() + static_cast<std::ptrdiff_t>(head.order[static_cast<std::size_t>(c)]) * batch.dim);
    }
  }
}

void assign(Batch& batch, const Worker& worker) {
  std::int32_t nearest[kBlockRows * 4];
  constexpr auto kBlock = static_cast<std::int64_t>(std::size(nearest));
  for_tokens(batch, worker, [&](int h, std::int64_t first, std::int64_t last) {
    BatchHead& head = batch.heads[static_cast<std::size_t>(h)];
    std::int64_t moved = 0;
    for (std::int64_t t = first; t < last; t += kBlock) {
      const int rows = static_cast<int>(std::min(kBlock, last - t));
      batch.kernels.assign(head.y.data() + t * batch.dim, rows, batch.dim, head.packed.data(), head.bias.data(), head.count,
                           nearest, head.score.data() + t);
      for (int i = 0; i < rows; ++i) {
        std::int32_t& now = head.nearest[static_cast<std::size_t>(t + i)];
        moved += now != nearest[i];
        now = nearest[i];
      }
    }
    head.moved.fetch_add(moved, std::memory_order_relaxed);
  });
}

// Sizes, repair, order; decides whether a head is done. Once nothing moves, or before the last assignment, clusters for outliers
// join: empty at first, hence filled with the farthest tokens, which draw those like them in one more assignment.
void settle(Batch& batch, const Worker& worker, int iteration) {
  for_heads(batch, worker, [&](int h) {
    BatchHead& head = batch.heads[static_cast<std::size_t>(h)];
    if (head.done) return;
    const bool rests = head.moved.exchange(0, std::memory_order_relaxed) == 0;
    const bool grows = head.count < batch.count && (rests || iteration == batch.options.iterations - 1);
    head.done = head.count == batch.count && (rests || batch.drawn < batch.count || iteration == batch.options.iterations);
    if (grows) head.count = batch.count;
    const auto sizes = head.sizes.span().first(static_cast<std::size_t>(head.count));
    count_sizes(head.nearest.span(), sizes);
    if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) {
      for (std::size_t i = 0; i < head.score.size(); ++i) head.score[i] = std::max(0.0f, head.norm[i] - 2 * head.score[i]);
      repair_empty(head.nearest.span(), sizes, head.score.span(), head.order.span());
    }
    order_tokens(head.nearest.span(), sizes, head.order.span(), batch.clusters(h).begin.span(), head.cursor.span());
  });
}

// Each cluster's mean as its centroid. A unit of clusters is the worker's in whose share of tokens it begins.
void update(Batch& batch, const Worker& worker) {
  BatchLocal& local = batch.locals[static_cast<std::size_t>(worker.rank())];
  for_tokens(batch, worker, [&](int h, std::int64_t first, std::int64_t last) {
    BatchHead& head = batch.heads[static_cast<std::size_t>(h)];
    const HeadClusters& clusters = batch.clusters(h);
    for (int unit = 0; unit < head.count; unit += kUnit) {
      if (clusters.begin[unit] < first || clusters.begin[unit] >= last) continue;
      for (int c = unit; c < std::min(head.count, unit + kUnit); ++c) {
        const auto tokens =
            head.order.span().subspan(static_cast<std::size_t>(clusters.begin[c]), static_cast<std::size_t>(clusters.size(c)));
        sum_rows(batch.kernels, tokens, DType::f32, batch.dim, local, local.mean.data(), [&](std::int32_t token) {
          return reinterpret_cast<const std::byte*>(head.y.data() + static_cast<std::ptrdiff_t>(token) * batch.dim);
        });
        const float inverse = 1.0f / static_cast<float>(tokens.size());
        for (int i = 0; i < batch.dim; ++i) local.mean[i] *= inverse;
        pack(batch, head, c, local.mean.data());
      }
    }
  });
}

}  // namespace

bool cluster_keys(Batch& batch, Worker& worker) {
  start(batch, worker);
  worker.barrier();
  load(batch, worker);
  worker.barrier();
  if (batch.failed.load(std::memory_order_relaxed)) return false;
  seed(batch, worker);
  worker.barrier();
  for (int iteration = 0;; ++iteration) {
    assign(batch, worker);
    worker.barrier();
    settle(batch, worker, iteration);
    worker.barrier();
    const auto active = std::span(batch.heads).first(static_cast<std::size_t>(batch.active));
    if (std::all_of(active.begin(), active.end(), [](const BatchHead& head) { return head.done; })) return true;
    update(batch, worker);
    worker.barrier();
  }
}

}  // namespace tactic
