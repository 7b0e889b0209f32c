// A batch of sequences over time on the device: lengths, observed queries, the index of every layer; append, recluster, rollback.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "cluster/cluster.h"
#include "core/device.h"
#include "core/options.h"

namespace tactic::cuda {

constexpr std::int32_t kMostTokens = 1 << 28;  // of a sequence: sums over the pieces of a KV head's lists stay in 32 bits

struct DeviceSequencesConfig {
  int layers = 0;
  int sequences = 0;
  std::int32_t max_length = 0;  // tokens that a sequence can reach; sizes the index
  Shape shape;                  // of every layer
  Rotary rotary;                // of every layer
  Options options;
};

// Owns the device memory of the indexes; K and V stay the caller's. All arrays keep their place and their size from construction
// on, and all counts are on the device: a captured graph of decode steps stays valid while sequences grow, are clustered anew and
// roll back. Calls are ordered by their stream; one call at a time.
class DeviceSequences {
 public:
  explicit DeviceSequences(const DeviceSequencesConfig& config);  // throws Error
  ~DeviceSequences();
  DeviceSequences(const DeviceSequences&) = delete;
  DeviceSequences& operator=(const DeviceSequences&) = delete;

  const DeviceSequencesConfig& config() const;
  const DeviceIndex& index(int layer) const;
  std::int32_t* lengths() const;  // [S], on the device
  std::uint32_t* status() const;  // [S] device_status bits of clusterings and appends, on the device
  std::size_t bytes() const;      // of device memory, scratch included

  // ---- in a captured graph ----
  // Every sequence that holds tokens is one token longer; one that is full stays so and gets bad_length.
  void append(DeviceStream stream);
  // A step's queries, of tokens lengths - 1. They shape the metric of later clusterings.
  void observe(int layer, const DeviceQuery& query, DeviceStream stream);

  // ---- between replays ----
  // A sequence's slot is empty again.
  void clear(int sequence, DeviceStream stream);
  // The caller has written tokens 0 .. tokens - 1 (a prompt, or a part of it) into its cache.
  void set_length(int sequence, std::int32_t tokens, DeviceStream stream);
  // Queries of the prompt's tokens first .. first + tokens - 1 (see observe_prompt of cluster/cuda_metric.h).
  void observe_prompt(int layer, int sequence, const void* q, DeviceType type, std::int64_t token_stride, std::int32_t first,
                      std::int32_t tokens, DeviceStream stream);
  // Tokens that cluster() would cluster now in a layer of a sequence that holds `tokens` tokens (Sequence::due()).
  std::int32_t due(int layer, int sequence, std::int32_t tokens) const;
  // Clusters what is due in layers first_layer .. first_layer + kv.size() - 1 of a sequence that holds `tokens` tokens. Its
  // lengths, as far as it names tokens, and K and V must be in place, in stream order. Returns the tokens clustered a layer, the
  // most of any. Waits for nothing; allocates only when a prompt is longer than any before.
  std::int32_t cluster(int first_layer, std::span<const DeviceKv> kv, int sequence, std::int32_t tokens, DeviceStream stream);
  // Rolls back to `tokens` tokens: segments that reach past it go.
  void truncate(int sequence, std::int32_t tokens, DeviceStream stream);
  // Waits for the stream; learns what was not committed (its tokens are attended and become due again), clears the status words
  // and throws Error if one was set.
  void settle(DeviceStream stream);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> state_;
};

}  // namespace tactic::cuda
