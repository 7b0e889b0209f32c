// Tactic on the layers of a case: their indexes, the calls of a step and its stages, and how the step is brought to a wanted
// share.
#pragma once

#include <string>
#include <vector>

#include "cases.h"
#include "core/device.h"
#include "core/options.h"
#include "limits.h"
#include "synthetic.h"

namespace tactic::bench::gpu {

// Device memory of one DeviceIndex.
class IndexStorage {
 public:
  IndexStorage(int sequences, int kv_heads, int head_dim, int clusters, std::int64_t tokens, bool int8_centroids);
  const DeviceIndex& index() const { return index_; }
  void copy_sequence(const IndexStorage& from, int from_sequence, int to_sequence);  // of equal capacities
  double bytes() const { return bytes_; }                                            // of all of it
  // Read by a step that looks at every centroid once: centroids, scales, sizes, spreads.
  double step_bytes() const { return step_bytes_; }

 private:
  template <class T>
  T* take(std::size_t count);
  DeviceIndex index_;
  int sequences_ = 0;
  std::vector<DeviceArray<std::byte>> arrays_;
  std::vector<std::size_t> sequence_bytes_;  // of each array, which is [sequences, ...]
  double bytes_ = 0, step_bytes_ = 0;
};

// The settings of a pipeline at mass P.
Options pipeline(const std::string& method, double mass, int cluster_size);

constexpr int kSinkTokens = 4;
constexpr int kRecentTokens = 512;  // never clustered ones: the mean over a long generation is more, at its start fewer

class TacticLayers {
 public:
  // prompt: tokens of every sequence now; 0: the whole context. `recent` of them are not clustered.
  TacticLayers(const Case& c, const SyntheticQueries& queries, const Options& options, std::int64_t prompt = 0,
               int recent = kRecentTokens);

  // Clusters every layer; microseconds a layer (all its sequences).
  double cluster(const DeviceArray<float>* metrics, cudaStream_t stream);

  void set_options(const Options& options) { options_ = options; }  // of choosing only
  const Options& options() const { return options_; }

  void dense(int layer, cudaStream_t stream) const { dense(layer, output(layer), stream); }
  void step(int layer, cudaStream_t stream) const { step(layer, output(layer), stream); }
  void dense(int layer, const DeviceOutput& output, cudaStream_t stream) const;
  void step(int layer, const DeviceOutput& output, cudaStream_t stream) const;
  void select(int layer, cudaStream_t stream) const;
  void attend(int layer, cudaStream_t stream) const;  // the lists that select left in this layer

  struct Choice {
    double share = 0;            // of the tokens in lists, mean over layers, sequences and KV heads
    double represented = 0;      // clusters that join by their mean V, likewise
    double least = 0, most = 0;  // shares of the sparsest and the fullest list
    StepRows rows;
  };
  Choice choose(cudaStream_t stream, bool rows = false) const;
  // Mean of |out - dense out| / |dense out| over the query heads of all layers; NaN if some head's result is not finite.
  double error(cudaStream_t stream);
  // Finds the mass P at which `share` of the tokens are listed, up to P = 99.9%.
  void steer(double share, cudaStream_t stream);

  std::uint32_t status() const;  // bits of all sequences since the start
  double index_bytes() const { return indexes_[0].bytes(); }
  double index_step_bytes() const { return indexes_[0].step_bytes(); }
  DeviceKv kv(int layer) const;
  DeviceQuery query(int layer) const;
  const IndexStorage& storage(int layer) const { return indexes_[static_cast<std::size_t>(layer)]; }
  std::int32_t* lengths() const { return lengths_.data(); }  // [batch] on the device

 private:
  DeviceOutput output(int layer) const;
  void* select_scratch(int layer) const { return select_.data() + static_cast<std::size_t>(layer) * select_bytes_; }
  DeviceLists lists(int layer) const;
  void add_always_attended(std::size_t slot, std::vector<std::int32_t>& rows) const;
  std::vector<float> outputs() const { return out_.to_host(); }

  const Case& c_;
  const SyntheticQueries& queries_;
  Options options_;
  std::int64_t prompt_ = 0;
  int recent_ = 0;
  std::vector<IndexStorage> indexes_;
  std::size_t select_bytes_ = 0;
  DeviceArray<std::int32_t> lengths_;
  DeviceArray<std::uint32_t> status_;
  DeviceArray<float> out_;  // [layers, batch, q_heads, head_dim]
  DeviceArray<std::byte> select_, attend_, decode_, dense_;
};

}  // namespace tactic::bench::gpu
