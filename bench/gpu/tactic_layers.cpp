// Calls of the device backend on synthetic layers.
#include "tactic_layers.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>

#include "attend/cuda.h"
#include "cluster/cuda.h"
#include "decode/cuda.h"
#include "select/cuda.h"

namespace tactic::bench::gpu {
namespace {

constexpr std::size_t kClusterTogether =
    4;  // layers or sequences clustered side by side: one of 32K tokens does not fill the device

int round_up(std::int64_t x, int to) { return static_cast<int>((x + to - 1) / to * to); }

DeviceArray<std::byte> zeroed(std::size_t bytes) {
  DeviceArray<std::byte> array(std::max<std::size_t>(bytes, 16));
  check(cudaMemset(array.data(), 0, array.size()), "cudaMemset");
  return array;
}

}  // namespace

template <class T>
T* IndexStorage::take(std::size_t count) {
  arrays_.push_back(zeroed(count * sizeof(T)));
  sequence_bytes_.push_back(count * sizeof(T) / static_cast<std::size_t>(sequences_));
  bytes_ += static_cast<double>(count * sizeof(T));
  return reinterpret_cast<T*>(arrays_.back().data());
}

IndexStorage::IndexStorage(int sequences, int kv_heads, int head_dim, int clusters, std::int64_t tokens, bool int8_centroids)
    : sequences_(sequences) {
  const auto slots = static_cast<std::size_t>(sequences) * static_cast<std::size_t>(kv_heads);
  const auto dim = static_cast<std::size_t>(head_dim);
  index_.capacity = round_up(clusters, 64);
  index_.token_capacity = round_up(tokens, 64);
  index_.part_capacity = 2;
  index_.int8_centroids = int8_centroids;
  const std::size_t columns = slots * static_cast<std::size_t>(index_.capacity);
  index_.clusters = take<std::int32_t>(slots);
  index_.range = take<std::int32_t>(2 * static_cast<std::size_t>(sequences));
  if (int8_centroids) {
    index_.centroid8 = take<std::int8_t>(columns * dim);
    index_.centroid_scale = take<float>(columns);
  } else {
    index_.centroid16 = take<std::uint16_t>(columns * dim);
  }
  index_.spread = take<float>(columns);
  index_.begin = take<std::int32_t>(slots * (static_cast<std::size_t>(index_.capacity) + 64));
  step_bytes_ = bytes_;
  index_.tokens = take<std::int32_t>(slots * static_cast<std::size_t>(index_.token_capacity));
  index_.mean_v = take<std::int8_t>(columns * dim);
  index_.mean_v_scale = take<float>(columns);
  index_.parts = take<std::int32_t>(static_cast<std::size_t>(sequences));
  index_.part_begin = take<std::int32_t>(slots * 3);
  index_.shape = take<std::uint16_t>(slots * 2 * dim * dim);
}

void IndexStorage::copy_sequence(const IndexStorage& from, int from_sequence, int to_sequence) {
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    const std::size_t bytes = sequence_bytes_[i];
    check(cudaMemcpy(arrays_[i].data() + static_cast<std::size_t>(to_sequence) * bytes,
                     from.arrays_[i].data() + static_cast<std::size_t>(from_sequence) * bytes, bytes, cudaMemcpyDeviceToDevice),
          "copy of an index");
  }
}

Options pipeline(const std::string& method, double mass, int cluster_size) {
  Options o;
  if (method == "paper") {
    o = paper_options();
  } else if (method == "tactic mass") {
    o.goal = Goal::mass;
  } else if (method != "tactic") {
    throw std::runtime_error("--methods " + method + ": must be of tactic, tactic mass, paper");
  }
  o.mass = static_cast<float>(mass);
  o.cluster_size = cluster_size;
  o.sink_tokens = kSinkTokens;
  o.recent_tokens = kRecentTokens;
  return o;
}

TacticLayers::TacticLayers(const Case& c, const SyntheticQueries& queries, const Options& options, std::int64_t prompt,
                           int recent)
    : c_(c),
      queries_(queries),
      options_(options),
      prompt_(prompt > 0 ? prompt : c.context),
      recent_(recent),
      lengths_(static_cast<std::size_t>(c.batch)),
      status_(static_cast<std::size_t>(c.batch)),
      out_(static_cast<std::size_t>(c.layers) * static_cast<std::size_t>(c.batch * c.q_heads * c.head_dim)) {
  lengths_.copy_from(std::vector<std::int32_t>(static_cast<std::size_t>(c.batch), static_cast<std::int32_t>(prompt_)));
  check(cudaMemset(status_.data(), 0, status_.size() * sizeof(std::uint32_t)), "cudaMemset");
  const std::int64_t clustered = prompt_ - kSinkTokens - recent_;
  const auto clusters = static_cast<int>(clustered / options.cluster_size + 1);
  for (int layer = 0; layer < c.layers; ++layer)
    indexes_.emplace_back(c.batch, c.kv_heads, c.head_dim, clusters, clustered, options.int8_centroids);
  const DeviceIndex& index = indexes_[0].index();
  select_bytes_ = (cuda::select_scratch_bytes(query(0), kv(0), index, options) + 255) / 256 * 256;
  select_ = zeroed(select_bytes_ * static_cast<std::size_t>(c.layers));
  attend_ = zeroed(cuda::attend_scratch_bytes(query(0), kv(0), lists(0)));
  decode_ = zeroed(cuda::decode_scratch_bytes(query(0), kv(0), &index, options));
  dense_ = zeroed(cuda::attend_dense_scratch_bytes(query(0), kv(0)));
}

DeviceKv TacticLayers::kv(int layer) const {
  const auto at = static_cast<std::size_t>(layer);
  DeviceRows rows;
  rows.dim = c_.head_dim;
  rows.head_stride = c_.row_bytes();
  rows.token_stride = c_.kv_heads * rows.head_stride;
  rows.sequence_stride = c_.context * rows.token_stride;
  DeviceKv kv;
  kv.k = kv.v = rows;
  kv.k.data = reinterpret_cast<const std::byte*>(c_.k[at]);
  kv.v.data = reinterpret_cast<const std::byte*>(c_.v[at]);
  kv.sequences = c_.batch, kv.kv_heads = c_.kv_heads;
  kv.max_length = static_cast<std::int32_t>(c_.context);
  kv.lengths = lengths_.data();
  return kv;
}

DeviceQuery TacticLayers::query(int layer) const {
  DeviceQuery q;
  q.q = queries_.step(c_, layer);
  q.sequence_stride = c_.q_heads * c_.row_bytes();
  q.shape = {c_.q_heads, c_.kv_heads, c_.head_dim, c_.head_dim};
  q.scale = 1 / std::sqrt(static_cast<float>(c_.head_dim));
  return q;
}

DeviceOutput TacticLayers::output(int layer) const {
  const std::int64_t elements = std::int64_t{c_.q_heads} * c_.head_dim;
  return {out_.data() + layer * c_.batch * elements, DeviceType::f32, elements * 4, nullptr};
}

DeviceLists TacticLayers::lists(int layer) const {
  return cuda::select_lists(query(layer), kv(layer), indexes_[static_cast<std::size_t>(layer)].index(), options_,
                            select_scratch(layer));
}

double TacticLayers::cluster(const DeviceArray<float>* metrics, cudaStream_t stream) {
  const ClusterOptions options{options_.cluster_size, options_.iterations, options_.int8_centroids, options_.seed,
                               options_.outlier_share};
  const std::int64_t metric_elements = std::int64_t{c_.kv_heads} * c_.head_dim * c_.head_dim;
  const auto last = static_cast<std::int32_t>(prompt_ - recent_);
  std::vector<cuda::ClusterJob> jobs;
  for (int layer = 0; layer < c_.layers; ++layer) {
    for (int s = 0; s < c_.batch; ++s) {
      cuda::ClusterTask task;
      task.sequence = s, task.first = kSinkTokens, task.last = last;
      if (metrics != nullptr) task.factor = metrics->data() + layer * metric_elements;
      jobs.push_back({kv(layer), indexes_[static_cast<std::size_t>(layer)].index(), task, status_.data()});
    }
  }
  const std::size_t together = std::min<std::size_t>(jobs.size(), kClusterTogether);
  const auto scratch = zeroed(together * cuda::cluster_scratch_bytes(kv(0), indexes_[0].index(), last - kSinkTokens, options));
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  cuda::cluster(std::span(jobs).first(together), options, scratch.data(), scratch.size(), stream);  // loads the kernels
  check(cudaEventRecord(begin, stream), "cudaEventRecord");
  cuda::cluster(jobs, options, scratch.data(), scratch.size(), stream);
  check(cudaEventRecord(end, stream), "cudaEventRecord");
  check(cudaEventSynchronize(end), "cluster");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds * 1000.0 / c_.layers;
}

void TacticLayers::dense(int layer, const DeviceOutput& output, cudaStream_t stream) const {
  cuda::attend_dense(query(layer), kv(layer), output, status_.data(), dense_.data(), stream);
}

void TacticLayers::step(int layer, const DeviceOutput& output, cudaStream_t stream) const {
  cuda::decode_step(query(layer), kv(layer), &indexes_[static_cast<std::size_t>(layer)].index(), options_, output, status_.data(),
                    decode_.data(), stream);
}

void TacticLayers::select(int layer, cudaStream_t stream) const {
  cuda::select(query(layer), kv(layer), indexes_[static_cast<std::size_t>(layer)].index(), options_, lists(layer), status_.data(),
               select_scratch(layer), stream);
}

void TacticLayers::attend(int layer, cudaStream_t stream) const {
  cuda::attend_lists(query(layer), kv(layer), indexes_[static_cast<std::size_t>(layer)].index(), lists(layer), output(layer),
                     status_.data(), attend_.data(), stream);
}

namespace {
template <class T>
std::vector<T> fetch(const T* from, std::size_t count) {
  std::vector<T> host(count);
  check(cudaMemcpy(host.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "copy of lists");
  return host;
}
}  // namespace

void TacticLayers::add_always_attended(std::size_t slot, std::vector<std::int32_t>& rows) const {
  const auto s = static_cast<std::int64_t>(slot) / c_.kv_heads, h = static_cast<std::int64_t>(slot) % c_.kv_heads;
  for (std::int64_t i = 0; i < kSinkTokens + recent_; ++i) {
    const std::int64_t token = i < kSinkTokens ? i : prompt_ - recent_ + i - kSinkTokens;
    rows.push_back(static_cast<std::int32_t>((s * c_.context + token) * c_.kv_heads + h));
  }
}

TacticLayers::Choice TacticLayers::choose(cudaStream_t stream, bool rows) const {
  Choice choice;
  choice.least = 1;
  const auto slots = static_cast<std::size_t>(c_.batch * c_.kv_heads);
  const double weight = 1.0 / static_cast<double>(c_.layers * static_cast<int>(slots));
  for (int layer = 0; layer < c_.layers; ++layer) {
    select(layer, stream);
    check(cudaStreamSynchronize(stream), "select");
    const DeviceLists l = lists(layer);
    const auto pieces = static_cast<std::size_t>(l.pieces);
    const auto counts = fetch(l.token_count, slots * pieces), first = fetch(l.token_first, slots * pieces);
    const auto represented = l.represented_count == nullptr ? std::vector<std::int32_t>(slots * pieces, 0)
                                                            : fetch(l.represented_count, slots * pieces);
    const auto tokens = rows ? fetch(l.tokens, slots * static_cast<std::size_t>(l.token_stride)) : std::vector<std::int32_t>();
    choice.rows.numbers.emplace_back();
    choice.rows.first.push_back({0});
    choice.rows.listed.emplace_back();
    std::vector<std::int32_t>& numbers = choice.rows.numbers.back();
    for (std::size_t slot = 0; slot < slots; ++slot) {
      double listed = 0;
      for (std::size_t p = slot * pieces; p < (slot + 1) * pieces; ++p) {
        listed += counts[p];
        choice.represented += weight * represented[p];
        for (int i = 0; rows && i < counts[p]; ++i) {
          const std::int32_t token =
              tokens[slot * static_cast<std::size_t>(l.token_stride) + static_cast<std::size_t>(first[p] + i)];
          const auto s = static_cast<std::int64_t>(slot) / c_.kv_heads, h = static_cast<std::int64_t>(slot) % c_.kv_heads;
          numbers.push_back(static_cast<std::int32_t>((s * c_.context + token) * c_.kv_heads + h));
        }
      }
      choice.rows.listed.back().push_back(static_cast<std::int32_t>(listed));
      if (rows) add_always_attended(slot, numbers);
      choice.rows.first.back().push_back(static_cast<std::int32_t>(numbers.size()));
      const double share = listed / static_cast<double>(c_.context);
      choice.share += weight * share;
      choice.least = std::min(choice.least, share), choice.most = std::max(choice.most, share);
    }
  }
  return choice;
}

double TacticLayers::error(cudaStream_t stream) {
  for (int layer = 0; layer < c_.layers; ++layer) dense(layer, stream);
  check(cudaStreamSynchronize(stream), "dense");
  const std::vector<float> wanted = outputs();
  for (int layer = 0; layer < c_.layers; ++layer) step(layer, stream);
  check(cudaStreamSynchronize(stream), "step");
  const std::vector<float> got = outputs();
  double sum = 0;
  const auto d = static_cast<std::size_t>(c_.head_dim);
  for (std::size_t head = 0; head < got.size() / d; ++head) {
    double off = 0, all = 0;
    for (std::size_t i = head * d; i < (head + 1) * d; ++i) {
      off += std::pow(static_cast<double>(got[i]) - static_cast<double>(wanted[i]), 2);
      all += std::pow(static_cast<double>(wanted[i]), 2);
    }
    sum += std::sqrt(off / all);
  }
  return sum / static_cast<double>(got.size() / d);
}

void TacticLayers::steer(double share, cudaStream_t stream) {
  double low = std::log(0.001), high = std::log(0.9);  // of 1 - P: the more is left out, the fewer are listed
  for (int trial = 0; trial < 10; ++trial) {
    options_.mass = static_cast<float>(1 - std::exp((low + high) / 2));
    (choose(stream).share > share ? low : high) = (low + high) / 2;
  }
}

std::uint32_t TacticLayers::status() const {
  std::uint32_t bits = 0;
  for (const std::uint32_t word : status_.to_host()) bits |= word;
  return bits;
}

}  // namespace tactic::bench::gpu
