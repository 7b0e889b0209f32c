// The device's arrays of a batch of sequences, laid out once; what changes them between replays of a step.
#include <algorithm>
#include <string>
#include <vector>

#include "cluster/cuda.h"
#include "cluster/cuda_metric.h"
#include "cluster/segment.h"
#include "core/cuda.h"
#include "sequence/cuda.h"
#include "sequence/cuda_memory.h"

namespace tactic::cuda {
namespace {

constexpr int kPartCapacity = 2;    // the prompt's part and one for what was generated
constexpr int kLayersTogether = 4;  // clustered by one launch: at 8 KV heads of 32K tokens enough to fill 132 processors evenly

// Ends of a sequence's segments in one layer, so that a rollback finds its way on the device.
struct SegmentTable {
  int capacity = 0;
  std::int32_t* count = nullptr;    // [S]
  std::int32_t* last = nullptr;     // [S, capacity] tokens
  std::int32_t* columns = nullptr;  // [S, capacity]
  std::int32_t* parts = nullptr;    // [S, capacity]
};

__global__ void append_kernel(std::int32_t* lengths, std::uint32_t* status, int sequences, std::int32_t max_length) {
  const int s = blockIdx.x * blockDim.x + threadIdx.x;
  if (s >= sequences || lengths[s] <= 0) return;
  if (lengths[s] >= max_length) {
    atomicOr(status + s, device_status::bad_length);
  } else {
    ++lengths[s];
  }
}

__global__ void set_length_kernel(std::int32_t* lengths, int sequence, std::int32_t tokens) { lengths[sequence] = tokens; }

// Notes the segment that a clustering has committed, if it has.
__global__ void record_kernel(DeviceIndex index, SegmentTable table, int sequence, int heads, bool append) {
  std::int32_t& count = table.count[sequence];
  if (!append) count = 0;
  const std::int32_t* range = index.range + 2 * sequence;
  const std::int64_t at = static_cast<std::int64_t>(sequence) * table.capacity + count;
  if (range[1] <= range[0] || count >= table.capacity || (count > 0 && table.last[at - 1] == range[1])) return;
  table.last[at] = range[1];
  table.columns[at] = index.clusters[static_cast<std::int64_t>(sequence) * heads];
  table.parts[at] = index.parts[sequence];
  ++count;
}

__global__ void truncate_kernel(DeviceIndex index, SegmentTable table, int sequence, int heads, std::int32_t tokens) {
  int count = table.count[sequence];
  const std::int64_t at = static_cast<std::int64_t>(sequence) * table.capacity;
  while (count > 0 && table.last[at + count - 1] > tokens) --count;
  __syncthreads();
  if (count == table.count[sequence]) return;
  const int columns = count > 0 ? table.columns[at + count - 1] : 0;
  const int parts = count > 0 ? table.parts[at + count - 1] : 0;
  const int last = count > 0 ? table.last[at + count - 1] : 0;
  __syncthreads();
  for (int head = threadIdx.x; head < heads; head += blockDim.x) {
    const std::int64_t slot = static_cast<std::int64_t>(sequence) * heads + head;
    index.clusters[slot] = columns;
    index.part_begin[slot * (index.part_capacity + 1) + parts] = columns;
  }
  if (threadIdx.x == 0) {
    table.count[sequence] = count;
    index.parts[sequence] = parts;
    index.range[2 * sequence + 1] = last;
    if (count == 0) index.range[2 * sequence] = 0;
  }
}

template <typename T>
T round_up(T x, T to) {
  return (x + to - 1) / to * to;
}

struct Layer {
  DeviceIndex index;
  QueryRing ring;
  SegmentTable segments;
  std::vector<std::int32_t> first;               // [S] first clustered token
  std::vector<std::vector<std::int32_t>> lasts;  // [S] ends of segments, as far as this side knows
  Memory memory;
};

// The first of what a sequence's status word says.
[[noreturn]] void throw_status(std::size_t sequence, std::uint32_t status, std::int32_t max_length) {
  const std::string where = "sequence " + std::to_string(sequence) + ": ";
  if ((status & device_status::bad_length) != 0) {
    throw Error(Status::invalid_state,
                where + "its length is outside [0, " + std::to_string(max_length) +
                    "], below the tokens clustered, or was to grow beyond max_length; set the length, roll "
                    "back with truncate, or make a batch for longer sequences");
  }
  if ((status & device_status::bad_block) != 0) {
    throw Error(Status::corrupt, where +
                                     "its block table names a block outside the cache (block_count); the tokens of such "
                                     "blocks were left out");
  }
  if ((status & device_status::non_finite) != 0) {
    throw Error(Status::non_finite, where +
                                        "q, K or V holds NaN or infinity; outputs of the heads concerned are NaN, tokens that "
                                        "were to be clustered stay unclustered");
  }
  if ((status & device_status::bad_index) != 0) {
    throw Error(Status::corrupt, where +
                                     "its clusters contradict its length or themselves, or do not fit the index; clear the "
                                     "sequence and prefill it again");
  }
  throw Error(Status::internal, where + "a list was full; outputs lack the mean V of some clusters");
}

}  // namespace

struct DeviceSequences::Implementation {
  DeviceSequencesConfig config;
  std::vector<Layer> layers;
  Memory common;   // lengths, status, turns, factors
  Memory scratch;  // of clustering
  std::int32_t* lengths = nullptr;
  std::uint32_t* status = nullptr;
  float* factors = nullptr;  // [kLayersTogether, kv_heads, d, d]
  TurnTable turns;

  ClusterOptions cluster_options() const {
    const Options& o = config.options;
    return {o.cluster_size, o.iterations, o.int8_centroids, o.seed, o.outlier_share};
  }
  int segment_capacity() const {
    const Options& o = config.options;
    const int shortest = o.segment_tokens > 0 ? std::min(o.segment_tokens, o.recluster_tokens) : o.recluster_tokens;
    // a prompt's pieces are at least half of segment_tokens
    return 2 + 2 * (config.max_length / std::max(shortest, 1));
  }
  void lay_out(Layer& layer, std::byte* base, std::size_t& used) const;
  std::int64_t due(const Layer& layer, int sequence, std::int32_t tokens) const;
  void grow_scratch(std::size_t bytes, cudaStream_t stream) {
    if (bytes <= scratch.bytes()) return;
    check(cudaStreamSynchronize(stream), "scratch of clustering");
    scratch = Memory();
    scratch = Memory(bytes, "scratch of clustering", "free some, or cluster the prompt in pieces (options.segment_tokens)");
  }
};

// Arrays of a layer from `base` on; a null base only counts.
void DeviceSequences::Implementation::lay_out(Layer& layer, std::byte* base, std::size_t& used) const {
  const auto take = [&](auto*& out, std::size_t count) {
    used = round_up<std::size_t>(used, 256);
    out = reinterpret_cast<std::remove_reference_t<decltype(out)>>(base + used);
    used += count * sizeof(*out);
  };
  DeviceIndex& index = layer.index;
  index.int8_centroids = config.options.int8_centroids;
  index.part_capacity = kPartCapacity;
  index.token_capacity = round_up(config.max_length, 64);
  // every segment rounds its number of clusters by itself
  index.capacity = round_up(config.max_length / config.options.cluster_size + segment_capacity() + 1, 64);
  const auto slots = static_cast<std::size_t>(config.sequences) * static_cast<std::size_t>(config.shape.kv_heads);
  const auto sequences = static_cast<std::size_t>(config.sequences);
  const std::size_t columns = slots * static_cast<std::size_t>(index.capacity);
  const auto dim = static_cast<std::size_t>(config.shape.head_dim);
  take(index.clusters, slots);
  take(index.range, sequences * 2);
  if (index.int8_centroids) {
    take(index.centroid8, columns * dim);
    take(index.centroid_scale, columns);
  } else {
    take(index.centroid16, columns * dim);
  }
  take(index.spread, columns);
  take(index.begin, columns + slots * 64);
  take(index.tokens, slots * static_cast<std::size_t>(index.token_capacity));
  take(index.mean_v, columns * static_cast<std::size_t>(config.shape.v_head_dim));
  take(index.mean_v_scale, columns);
  take(index.parts, sequences);
  take(index.part_begin, slots * (kPartCapacity + 1));
  take(index.shape, slots * kPartCapacity * dim * dim);
  layer.segments.capacity = segment_capacity();
  const auto segments = sequences * static_cast<std::size_t>(segment_capacity());
  take(layer.segments.count, sequences);
  take(layer.segments.last, segments);
  take(layer.segments.columns, segments);
  take(layer.segments.parts, segments);
  std::byte* ring = nullptr;
  take(ring, query_ring_bytes(config.sequences, config.shape));
  layer.ring = make_query_ring(config.sequences, config.shape, ring);
  used = round_up<std::size_t>(used, 256);
}

std::int64_t DeviceSequences::Implementation::due(const Layer& layer, int sequence, std::int32_t tokens) const {
  const Options& o = config.options;
  if (o.method == Method::full) return 0;
  const auto& lasts = layer.lasts[static_cast<std::size_t>(sequence)];
  const std::int32_t first = lasts.empty() ? o.sink_tokens : lasts.back();
  const std::int32_t waiting = tokens - o.recent_tokens - first;
  if (lasts.empty()) return tokens >= o.min_context && waiting >= o.cluster_size ? waiting : 0;
  return waiting >= o.recluster_tokens ? o.recluster_tokens : 0;
}

DeviceSequences::DeviceSequences(const DeviceSequencesConfig& config) : state_(std::make_unique<Implementation>()) {
  validate(config.shape);
  validate(config.options);
  const auto in_range = [](const char* field, int value, int most) {
    if (value >= 1 && value <= most) return;
    throw Error(Status::invalid_argument,
                std::string(field) + " is " + std::to_string(value) + ", must be in [1, " + std::to_string(most) + "]");
  };
  in_range("layers", config.layers, 4096);
  in_range("sequences", config.sequences, 65535);
  in_range("max_length", config.max_length, kMostTokens);
  Implementation& state = *state_;
  state.config = config;

  const auto dim = static_cast<std::size_t>(config.shape.head_dim);
  const std::vector<float> turns = turn_table(config.rotary, config.shape.head_dim);
  const std::size_t words = round_up<std::size_t>(static_cast<std::size_t>(config.sequences) * 4, 256);
  const std::size_t factor_bytes = kLayersTogether * static_cast<std::size_t>(config.shape.kv_heads) * dim * dim * 4;
  constexpr const char* kLess = "lower sequences or max_length, or raise options.cluster_size";
  state.common = Memory(2 * words + round_up<std::size_t>(turns.size() * 4, 256) + factor_bytes, "the batch", kLess);
  auto* base = static_cast<std::byte*>(state.common.data());
  check(cudaMemset(base, 0, state.common.bytes()), "DeviceSequences");
  state.lengths = reinterpret_cast<std::int32_t*>(base);
  state.status = reinterpret_cast<std::uint32_t*>(base + words);
  state.factors = reinterpret_cast<float*>(base + 2 * words);
  auto* table = reinterpret_cast<float*>(base + 2 * words + factor_bytes);
  check(cudaMemcpy(table, turns.data(), turns.size() * 4, cudaMemcpyHostToDevice), "DeviceSequences");
  state.turns = {config.rotary.layout, std::min(static_cast<int>(config.rotary.frequency.size()), config.shape.head_dim / 2),
                 table};

  state.layers.resize(static_cast<std::size_t>(config.layers));
  for (Layer& layer : state.layers) {
    std::size_t bytes = 0;
    state.lay_out(layer, nullptr, bytes);
    layer.memory = Memory(bytes, "the index of a layer", kLess);
    check(cudaMemset(layer.memory.data(), 0, bytes), "DeviceSequences");
    bytes = 0;
    state.lay_out(layer, static_cast<std::byte*>(layer.memory.data()), bytes);
    check(cudaMemset(layer.ring.tokens, 0xff, static_cast<std::size_t>(config.sequences) * QueryRing::kWindow * 4),
          "DeviceSequences");
    layer.lasts.resize(static_cast<std::size_t>(config.sequences));
  }
  check(cudaStreamSynchronize(nullptr), "DeviceSequences");  // streams of the caller's need not wait for the default one
}

DeviceSequences::~DeviceSequences() = default;

const DeviceSequencesConfig& DeviceSequences::config() const { return state_->config; }
const DeviceIndex& DeviceSequences::index(int layer) const { return state_->layers[static_cast<std::size_t>(layer)].index; }
std::int32_t* DeviceSequences::lengths() const { return state_->lengths; }
std::uint32_t* DeviceSequences::status() const { return state_->status; }

std::size_t DeviceSequences::bytes() const {
  std::size_t bytes = state_->common.bytes() + state_->scratch.bytes();
  for (const Layer& layer : state_->layers) bytes += layer.memory.bytes();
  return bytes;
}

void DeviceSequences::append(DeviceStream stream) {
  const auto blocks = static_cast<unsigned>((state_->config.sequences + 127) / 128);
  launch("append", append_kernel, {blocks, 128}, stream, state_->lengths, state_->status, state_->config.sequences,
         state_->config.max_length);
}

void DeviceSequences::observe(int layer, const DeviceQuery& query, DeviceStream stream) {
  observe_step(state_->layers[static_cast<std::size_t>(layer)].ring, query, state_->lengths, state_->config.sequences, stream);
}

void DeviceSequences::clear(int sequence, DeviceStream stream) {
  truncate(sequence, 0, stream);
  for (Layer& layer : state_->layers) clear_query_ring(layer.ring, sequence, stream);
}

void DeviceSequences::set_length(int sequence, std::int32_t tokens, DeviceStream stream) {
  if (tokens < 0 || tokens > state_->config.max_length) {
    throw Error(Status::invalid_argument, "length is " + std::to_string(tokens) + ", must be in [0, " +
                                              std::to_string(state_->config.max_length) + "], the batch's max_length");
  }
  launch("set_length", set_length_kernel, {1, 1}, stream, state_->lengths, sequence, tokens);
}

void DeviceSequences::observe_prompt(int layer, int sequence, const void* q, DeviceType type, std::int64_t token_stride,
                                     std::int32_t first, std::int32_t tokens, DeviceStream stream) {
  tactic::cuda::observe_prompt(state_->layers[static_cast<std::size_t>(layer)].ring, state_->config.shape, sequence, q, type,
                               token_stride, first, tokens, stream);
}

std::int32_t DeviceSequences::due(int layer, int sequence, std::int32_t tokens) const {
  return static_cast<std::int32_t>(state_->due(state_->layers[static_cast<std::size_t>(layer)], sequence, tokens));
}

std::int32_t DeviceSequences::cluster(int first_layer, std::span<const DeviceKv> kv, int sequence, std::int32_t tokens,
                                      DeviceStream stream) {
  Implementation& state = *state_;
  const Options& options = state.config.options;
  const ClusterOptions how = state.cluster_options();
  const Metric wanted = options.method == Method::paper ? Metric::l2 : options.metric;
  const auto dim = static_cast<std::size_t>(state.config.shape.head_dim);
  const std::size_t factor_size = static_cast<std::size_t>(state.config.shape.kv_heads) * dim * dim;
  std::int32_t most = 0;
  for (std::size_t group = 0; group < kv.size(); group += kLayersTogether) {
    const std::size_t end = std::min(kv.size(), group + kLayersTogether);
    std::vector<ClusterJob> jobs;
    std::int64_t pieces = 1;
    for (std::size_t i = group; i < end; ++i) {
      Layer& layer = state.layers[static_cast<std::size_t>(first_layer) + i];
      const auto waiting = static_cast<std::int32_t>(state.due(layer, sequence, tokens));
      if (waiting == 0) continue;
      auto& lasts = layer.lasts[static_cast<std::size_t>(sequence)];
      ClusterTask task;
      task.sequence = sequence;
      task.append = !lasts.empty();
      task.new_part = task.append;
      task.first = lasts.empty() ? options.sink_tokens : lasts.back();
      task.last = task.first + waiting;
      if (wanted != Metric::l2) {
        float* factor = state.factors + (i - group) * factor_size;
        make_factors(layer.ring, state.config.shape, sequence, wanted, state.turns, options.shrinkage, factor, stream);
        task.factor = factor;
      }
      if (!task.append && options.segment_tokens > 0) {
        pieces = std::max<std::int64_t>(1, (waiting + options.segment_tokens / 2) / options.segment_tokens);
      }
      jobs.push_back({kv[i], layer.index, task, state.status});
      most = std::max(most, waiting);
    }
    if (jobs.empty()) continue;
    // A prompt in equal pieces near the wanted length, all layers' first pieces before their second.
    const std::vector<ClusterJob> whole = jobs;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      std::int32_t longest = 0;
      for (std::size_t j = 0; j < jobs.size(); ++j) {
        const ClusterTask& all = whole[j].task;
        const std::int64_t waiting = all.last - all.first;
        jobs[j].task.first = all.first + static_cast<std::int32_t>(waiting * piece / pieces);
        jobs[j].task.last = all.first + static_cast<std::int32_t>(waiting * (piece + 1) / pieces);
        jobs[j].task.append = all.append || piece > 0;
        longest = std::max(longest, jobs[j].task.last - jobs[j].task.first);
      }
      const std::size_t one = cluster_scratch_bytes(jobs.front().kv, jobs.front().index, longest, how);
      state.grow_scratch(one * jobs.size(), stream);
      tactic::cuda::cluster(jobs, how, state.scratch.data(), state.scratch.bytes(), stream);
      std::size_t job = 0;
      for (std::size_t i = group; i < end && job < jobs.size(); ++i) {
        Layer& layer = state.layers[static_cast<std::size_t>(first_layer) + i];
        if (layer.index.clusters != jobs[job].index.clusters) continue;
        launch("record", record_kernel, {1, 1}, stream, layer.index, layer.segments, sequence, state.config.shape.kv_heads,
               jobs[job].task.append);
        layer.lasts[static_cast<std::size_t>(sequence)].push_back(jobs[job].task.last);
        ++job;
      }
    }
  }
  return most;
}

void DeviceSequences::truncate(int sequence, std::int32_t tokens, DeviceStream stream) {
  set_length(sequence, tokens, stream);
  for (Layer& layer : state_->layers) {
    auto& lasts = layer.lasts[static_cast<std::size_t>(sequence)];
    while (!lasts.empty() && lasts.back() > tokens) lasts.pop_back();
    launch("truncate", truncate_kernel, {1, 32}, stream, layer.index, layer.segments, sequence, state_->config.shape.kv_heads,
           tokens);
  }
}

void DeviceSequences::settle(DeviceStream stream) {
  Implementation& state = *state_;
  const auto sequences = static_cast<std::size_t>(state.config.sequences);
  const auto copy = [&](auto& to, const auto* from) {
    check(cudaMemcpyAsync(to.data(), from, to.size() * sizeof(to[0]), cudaMemcpyDeviceToHost, stream), "settle");
  };
  std::vector<std::uint32_t> status(sequences);
  std::vector<std::int32_t> counts(sequences);
  copy(status, state.status);
  check(cudaMemsetAsync(state.status, 0, sequences * sizeof(std::uint32_t), stream), "settle");
  for (Layer& layer : state.layers) {
    const auto capacity = static_cast<std::size_t>(layer.segments.capacity);
    std::vector<std::int32_t> lasts(sequences * capacity);
    copy(counts, layer.segments.count);
    copy(lasts, layer.segments.last);
    check(cudaStreamSynchronize(stream), "settle");
    for (std::size_t s = 0; s < sequences; ++s) {
      const auto begin = lasts.begin() + static_cast<std::ptrdiff_t>(s * capacity);
      layer.lasts[s].assign(begin, begin + counts[s]);
    }
  }
  for (std::size_t s = 0; s < sequences; ++s) {
    if (status[s] != 0) throw_status(s, status[s], state.config.max_length);
  }
}

}  // namespace tactic::cuda
