// build_segment() on the device: checks, scratch, and the order of the stages. See cuda_batch.h for what they work on.
#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "cluster/cuda.h"
#include "cluster/cuda_batch.h"
#include "cluster/segment.h"
#include "core/cuda.h"

namespace tactic::cuda {
namespace {

std::atomic<bool> common_kernels{false};

// Hands out pieces of scratch, or only counts them.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  void take(T*& out, std::size_t count) {
    used_ = (used_ + 255) / 256 * 256;
    out = reinterpret_cast<T*>(base_ + used_);
    used_ += count * sizeof(T);
  }
  std::size_t used() const { return (used_ + 255) / 256 * 256; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

std::size_t lay_out(Batch& batch, void* scratch) {
  Arena arena(scratch);
  Work& work = batch.work;
  const auto problems = static_cast<std::size_t>(batch.job_count) * static_cast<std::size_t>(batch.heads);
  const auto dim = static_cast<std::size_t>(batch.dim);
  const std::size_t rows = problems * static_cast<std::size_t>(batch.rows);
  const std::size_t columns = problems * static_cast<std::size_t>(batch.columns);
  arena.take(work.state, problems);
  arena.take(work.fault, static_cast<std::size_t>(batch.job_count));
  arena.take(work.y, rows * dim);
  arena.take(work.norm, rows);
  arena.take(work.score, rows);
  arena.take(work.nearest, rows);
  arena.take(work.order, rows);
  arena.take(work.sizes, columns);
  arena.take(work.cursor, columns);
  arena.take(work.begin, columns + problems);
  arena.take(work.large, columns);
  arena.take(work.kept, columns);
  arena.take(work.tiles, columns / kTileClusters * static_cast<std::size_t>(tile_bytes(kTileClusters, batch.dim)));
  arena.take(work.bias, columns);
  arena.take(work.origin, problems * dim);
  arena.take(work.factor, problems * static_cast<std::size_t>(tile_bytes(batch.dim, batch.dim)));
  arena.take(work.mean_k, columns * dim);
  arena.take(work.products, problems * static_cast<std::size_t>(batch.pieces) * dim * dim);
  return arena.used();
}

template <typename T>
T round_up(T x, T to) {
  return (x + to - 1) / to * to;
}

// Sizes of a batch of jobs of up to `tokens` tokens.
Batch make_batch(const DeviceKv& kv, std::int32_t tokens, const ClusterOptions& options, int jobs) {
  Batch batch;
  batch.job_count = jobs;
  batch.heads = kv.kv_heads;
  batch.dim = kv.k.dim;
  batch.v_dim = kv.v.dim;
  batch.rows = round_up(tokens, kTokenTile);
  batch.columns = round_up(cluster_count(tokens, options.cluster_size), kTileClusters);
  batch.pieces = std::clamp(tokens / kPieceTokens, 1, kMaxPieces);
  batch.iterations = options.iterations;
  batch.int8_centroids = options.int8_centroids;
  batch.seed = options.seed;
  return batch;
}

[[noreturn]] void refuse(const std::string& message) { throw Error(Status::invalid_argument, message); }

void check_job(const ClusterJob& job, const ClusterOptions& options) {
  const DeviceKv& kv = job.kv;
  const ClusterTask& task = job.task;
  for (const int dim : {kv.k.dim, kv.v.dim}) {
    if (dim != 64 && dim != 80 && dim != 96 && dim != 128 && dim != 256) {
      refuse("head_dim of a clustering is " + std::to_string(dim) + ", must be 64, 80, 96, 128 or 256");
    }
  }
  if (task.sequence < 0 || task.sequence >= kv.sequences) {
    refuse("sequence of a clustering is " + std::to_string(task.sequence) + ", must be in [0, " + std::to_string(kv.sequences) +
           ")");
  }
  if (task.first < 0 || task.first >= task.last || task.last > kv.max_length) {
    refuse("tokens of a clustering are [" + std::to_string(task.first) + ", " + std::to_string(task.last) +
           "), must be a range of at least one token inside max_length " + std::to_string(kv.max_length));
  }
  if (options.cluster_size < 1 || options.iterations < 0) refuse("cluster_size must be at least 1 and iterations at least 0");
  if (!(options.outlier_share >= 0 && options.outlier_share <= 0.5f)) refuse("outlier_share of a clustering must be in [0, 0.5]");
  const int count = cluster_count(task.last - task.first, options.cluster_size);
  if (count > job.index.capacity || task.last - task.first > job.index.token_capacity || job.index.part_capacity < 1) {
    refuse(std::to_string(count) + " clusters of " + std::to_string(task.last - task.first) + " tokens do not fit an index of " +
           std::to_string(job.index.capacity) + " clusters and " + std::to_string(job.index.token_capacity) + " tokens");
  }
  if (options.int8_centroids != job.index.int8_centroids) refuse("int8_centroids of the clustering and of the index differ");
}

Job make_job(const ClusterJob& from, const ClusterOptions& options) {
  Job job;
  job.k = from.kv.k;
  job.v = from.kv.v;
  if (from.kv.block_table != nullptr) {
    job.blocks = from.kv.block_table + static_cast<std::int64_t>(from.task.sequence) * from.kv.max_blocks;
    job.block_size = from.kv.block_size;
    job.block_count = from.kv.block_count;
  }
  job.sequence = from.task.sequence;
  job.first = from.task.first;
  job.n = from.task.last - from.task.first;
  job.count = cluster_count(job.n, options.cluster_size);
  job.drawn = drawn_count(job.count, options);
  job.append = from.task.append;
  job.new_part = from.task.new_part;
  job.factor = from.task.factor;
  job.status = from.status;
  job.index = from.index;
  return job;
}

void run(const Batch& batch, cudaStream_t stream) {
  start_problems(batch, stream);
  load_keys(batch, stream);
  seed_centroids(batch, stream);
  for (int iteration = 0; iteration <= batch.iterations; ++iteration) {
    if (common_kernels || !assign_tokens_sm90(batch, iteration, stream)) assign_tokens(batch, iteration, stream);
    settle_clusters(batch, iteration, stream);
    if (iteration < batch.iterations) update_centroids(batch, iteration, stream);
  }
  finish_clusters(batch, stream);
  commit(batch, stream);
}

}  // namespace

std::size_t cluster_scratch_bytes(const DeviceKv& kv, const DeviceIndex&, std::int32_t max_tokens,
                                  const ClusterOptions& options) {
  Batch batch = make_batch(kv, max_tokens, options, 1);
  return lay_out(batch, nullptr);
}

void cluster(std::span<const ClusterJob> jobs, const ClusterOptions& options, void* scratch, std::size_t scratch_bytes,
             DeviceStream stream) {
  std::int32_t tokens = 0;
  for (const ClusterJob& job : jobs) {
    check_job(job, options);
    tokens = std::max(tokens, job.task.last - job.task.first);
  }
  if (jobs.empty()) return;
  int together = static_cast<int>(std::min<std::size_t>(jobs.size(), kMaxJobs));
  Batch batch = make_batch(jobs.front().kv, tokens, options, together);
  while (together > 1 && lay_out(batch, scratch) > scratch_bytes) batch.job_count = --together;
  if (lay_out(batch, scratch) > scratch_bytes) {
    refuse("scratch of the clustering is " + std::to_string(scratch_bytes) + " bytes, must be at least " +
           std::to_string(lay_out(batch, scratch)));
  }
  // Batches of equal number: no small one at the end that leaves the device idle.
  const std::size_t batches = (jobs.size() + static_cast<std::size_t>(together) - 1) / static_cast<std::size_t>(together);
  for (std::size_t b = 0; b < batches; ++b) {
    const std::size_t first = jobs.size() * b / batches;
    const std::size_t last = jobs.size() * (b + 1) / batches;
    batch.job_count = static_cast<int>(last - first);
    lay_out(batch, scratch);
    for (std::size_t i = first; i < last; ++i) batch.jobs[i - first] = make_job(jobs[i], options);
    run(batch, stream);
  }
}

void cluster(const DeviceKv& kv, const DeviceIndex& index, const ClusterTask& task, const ClusterOptions& options,
             std::uint32_t* status, void* scratch, DeviceStream stream) {
  const ClusterJob job{kv, index, task, status};
  cluster(std::span(&job, 1), options, scratch, cluster_scratch_bytes(kv, index, task.last - task.first, options), stream);
}

void force_common_clustering(bool force) { common_kernels = force; }

void throw_cluster_fault(const ClusterJob& job, const ClusterOptions& options, const void* scratch, DeviceStream stream) {
  Batch batch = make_batch(job.kv, job.task.last - job.task.first, options, 1);
  lay_out(batch, const_cast<void*>(scratch));
  std::vector<ProblemState> states(static_cast<std::size_t>(batch.heads));
  check(cudaMemcpyAsync(states.data(), batch.work.state, states.size() * sizeof(ProblemState), cudaMemcpyDeviceToHost, stream),
        "throw_cluster_fault");
  check(cudaStreamSynchronize(stream), "throw_cluster_fault");
  for (std::size_t head = 0; head < states.size(); ++head) {
    for (const bool of_k : {true, false}) {
      const std::uint32_t token = of_k ? states[head].bad_k : states[head].bad_v;
      if (token == kNone) continue;
      throw Error(Status::non_finite, std::string(of_k ? "K" : "V") + " of token " + std::to_string(job.task.first + token) +
                                          ", KV head " + std::to_string(head) + " holds NaN or infinity");
    }
  }
}

}  // namespace tactic::cuda
