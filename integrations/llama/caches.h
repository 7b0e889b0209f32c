// All K/V caches of the process: found from the graph, told of every write, forgotten with their buffer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "graph.h"
#include "layer.h"

namespace tactic::llama {

// Writes come two ways: operations of a graph (note_write) and, without any graph, calls on the buffer (state restore, clear,
// copies between streams), whose functions are therefore wrapped for as long as the buffer lives. Cells are found by address.
// Calls lock; the layers they return are used by one graph at a time, like the engine's cache itself.
class Caches {
 public:
  static Caches& instance();

  std::shared_ptr<Layer> layer(const AttentionNode& node);  // found or made; wraps the buffer when new
  // A node of a graph that is about to run and writes into a cache.
  void note_write(const ggml_tensor* node, std::uint32_t step);
  std::uint32_t next_step();

  // A saved index for the layer of this number, now or when its first graph runs. A later offer replaces an earlier one.
  void offer(int number, SavedIndex saved);
  void drop_indexes();

  void for_each(const std::function<void(Layer&)>& visit);
  // Layers of the buffer that the most recently used layer lies in.
  std::vector<std::shared_ptr<Layer>> recent();
  void set_recent(const Layer& layer) { recent_ = watched_ = layer.buffer(); }
  // The same for the layer whose queries were looked at last, in prefill or decode.
  std::vector<std::shared_ptr<Layer>> watched();
  void set_watched(const Layer& layer) { watched_ = layer.buffer(); }

  enum class Change { tokens, content };  // other tokens in these cells, or the same tokens turned
  void buffer_write(ggml_backend_buffer* buffer, const void* data, std::size_t bytes, Change change);
  ggml_backend_buffer_i original(ggml_backend_buffer* buffer);
  ggml_backend_buffer_i release(ggml_backend_buffer* buffer);  // unwraps and forgets; returns the original functions

 private:
  void wrap(ggml_backend_buffer* buffer);
  std::vector<std::shared_ptr<Layer>> in_buffer(const ggml_backend_buffer* buffer);

  std::mutex mutex_;
  std::unordered_map<const ggml_tensor*, std::vector<std::shared_ptr<Layer>>> by_root_;  // of K and of V; one layer a stream
  std::unordered_map<ggml_backend_buffer*, ggml_backend_buffer_i> wrapped_;
  std::unordered_map<int, SavedIndex> offers_;  // for layers that are not there yet
  ggml_backend_buffer* recent_ = nullptr;
  ggml_backend_buffer* watched_ = nullptr;
  std::uint32_t step_ = 0;
};

}  // namespace tactic::llama
