// Sequences of several layers on the device behind the C API, and the same ones for the CPU's: caches in pages, queries, both
// states, a step of each.
#pragma once

#include "capi/fixture.h"
#include "support/device.h"
#include "tactic/tactic_cuda.h"

namespace tactic::test {

struct BatchDeleter {
  void operator()(tactic_cuda_batch* batch) const { tactic_cuda_batch_destroy(batch); }
};
using BatchPtr = std::unique_ptr<tactic_cuda_batch, BatchDeleter>;

inline tactic_cuda_rows to_c(const DeviceRows& r) {
  return {
      r.data, static_cast<std::int32_t>(r.type), r.dim, r.token_stride, r.head_stride, r.block_stride, r.sequence_stride, r.scale,
      0};
}
inline tactic_cuda_kv to_c(const DeviceKv& kv) {
  tactic_cuda_kv view;
  EXPECT_WORKS(tactic_cuda_kv_init(&view, sizeof view));
  view.k = to_c(kv.k), view.v = to_c(kv.v), view.kv_heads = kv.kv_heads;
  view.block_table = kv.block_table, view.block_size = kv.block_size, view.max_blocks = kv.max_blocks;
  view.block_count = kv.block_count;
  return view;
}

// Both sides' options: small clusters, so that short sequences have many.
inline tactic_options small_options() {
  tactic_options options;
  EXPECT_WORKS(tactic_cuda_options_init(&options, sizeof options));
  options.cluster_size = 8, options.min_context = 256, options.recluster_tokens = 128, options.recent_tokens = 16;
  return options;
}
inline tactic_sequence_config small_config(const Shape& shape, int layers, const tactic_options* options) {
  tactic_sequence_config config;
  EXPECT_WORKS(tactic_sequence_config_init(&config, sizeof config));
  config.attention = to_c(shape), config.layers = layers, config.options = options;
  config.rotary_layout = TACTIC_ROTARY_NONE;
  return config;
}

class DeviceLife {
 public:
  static constexpr int kLayers = 2;

  // Sequences whose caches hold `room` tokens each, all empty yet.
  explicit DeviceLife(std::vector<std::int64_t> room, Layout layout = Layout::blocks) : options_(small_options()) {
    for (int l = 0; l < kLayers; ++l) {
      std::vector<KvCase*> cases;
      for (std::size_t s = 0; s < room.size(); ++s) {
        caches_.push_back(std::make_unique<TopicCache>(room[s], 10 * static_cast<std::uint64_t>(l) + s + 1));
        cases.push_back(&caches_.back()->kv);
      }
      DeviceBatch::Format format;
      format.layout = layout;
      memory_.push_back(std::make_unique<DeviceBatch>(cases, format));
      views_.push_back(to_c(memory_.back()->kv()));
    }
    sequences_ = static_cast<int>(room.size());
    const tactic_sequence_config config = small_config(shape(), kLayers, &options_);
    tactic_cuda_batch_config whole;
    EXPECT_WORKS(tactic_cuda_batch_config_init(&whole, sizeof whole));
    whole.sequence = &config, whole.sequences = sequences_, whole.max_length = memory_[0]->kv().max_length;
    tactic_cuda_batch* batch = nullptr;
    EXPECT_WORKS(tactic_cuda_batch_create(&whole, &batch));
    batch_.reset(batch);
    for (int s = 0; s < sequences_; ++s) on_cpu_.push_back(make_sequence(shape(), kLayers, &options_));
    queries_.resize(kLayers);
    tactic_cuda_step_args args = step_args(0);
    std::size_t bytes = 0;
    EXPECT_WORKS(tactic_cuda_step_bytes(batch, &views_[0], &args, &bytes));
    scratch_ = DeviceArray<std::byte>(bytes, 0);
  }

  const Shape& shape() const { return caches_[0]->shape(); }
  tactic_cuda_batch* batch() const { return batch_.get(); }
  tactic_cuda_kv& view(int layer) { return views_[static_cast<std::size_t>(layer)]; }
  DeviceBatch& memory(int layer) { return *memory_[static_cast<std::size_t>(layer)]; }
  TopicCache& cache(int layer, int s) { return *caches_[static_cast<std::size_t>(layer * sequences_ + s)]; }
  tactic_sequence* on_cpu(int s) const { return on_cpu_[static_cast<std::size_t>(s)].get(); }
  tactic_context* context() const { return context_.get(); }

  // A prompt in all layers, on both sides.
  void prefill(int s, std::int32_t tokens) {
    constexpr int kObserved = 40;
    for (int l = 0; l < kLayers; ++l) {
      std::vector<float> all;
      for (int i = 0; i < kObserved; ++i) {
        const std::vector<float> q = cache(l, s).query();
        all.insert(all.end(), q.begin(), q.end());
      }
      ASSERT_WORKS(tactic_sequence_observe(on_cpu(s), l, all.data(), kObserved, 0, 0));
      const DeviceArray<float> device(all);
      ASSERT_WORKS(
          tactic_cuda_observe_prompt(batch(), l, s, device.get(), TACTIC_CUDA_F32, 0, tokens - kObserved, kObserved, nullptr));
      cuda_ok(cudaDeviceSynchronize());  // the queries' memory goes
    }
    ASSERT_WORKS(tactic_cuda_set_length(batch(), s, tokens, nullptr));
    cluster(s, tokens);
  }
  // What is due, the same on both sides. Returns the tokens.
  std::int32_t cluster(int s, std::int32_t tokens) {
    std::int32_t due = -1, clustered = -1;
    std::int64_t due_on_cpu = -1;
    EXPECT_WORKS(tactic_cuda_due(batch(), 0, s, tokens, &due));
    EXPECT_WORKS(tactic_sequence_due(on_cpu(s), 0, tokens, &due_on_cpu));
    EXPECT_EQ(due, due_on_cpu);
    EXPECT_WORKS(tactic_cuda_cluster(batch(), 0, kLayers, views_.data(), s, tokens, &clustered, nullptr));
    EXPECT_EQ(clustered, due);
    for (int l = 0; l < kLayers; ++l) {
      const tactic_kv_view view = cache(l, s).view(tokens);
      EXPECT_WORKS(tactic_sequence_update(on_cpu(s), context(), l, &view, 1, nullptr));
    }
    return clustered;
  }

  // New queries of all sequences in a layer; those in `queries()` are what the device sees.
  void ask(int layer) {
    auto& rows = queries_[static_cast<std::size_t>(layer)];
    rows.clear();
    for (int s = 0; s < sequences_; ++s) {
      const std::vector<float> q = cache(layer, s).query();
      cache(layer, s).kv.q() = q;
      rows.push_back(q);
    }
    memory(layer).upload_queries();
    cuda_ok(cudaDeviceSynchronize());  // for streams that do not wait for the default one
  }
  const std::vector<float>& query(int layer, int s) const {
    return queries_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(s)];
  }
  tactic_cuda_step_args step_args(int layer, float mass = 0) {
    tactic_cuda_step_args args;
    EXPECT_WORKS(tactic_cuda_step_args_init(&args, sizeof args));
    args.q = memory(layer).query().q, args.q_dtype = args.out_dtype = TACTIC_CUDA_F32;
    args.out = memory(layer).output().out, args.lse = memory(layer).output().lse;
    args.mass = mass;
    args.scratch = scratch_.get(), args.scratch_bytes = scratch_.size();
    return args;
  }
  tactic_status launch(int layer, float mass = 0, int observe = 0) {
    tactic_cuda_step_args args = step_args(layer, mass);
    args.observe = observe;
    return tactic_cuda_step(batch(), layer, &view(layer), &args, nullptr);
  }
  // [S][q_heads * v_head_dim]
  std::vector<std::vector<float>> outputs(int layer) {
    cuda_ok(cudaDeviceSynchronize());
    const std::vector<float> all = memory(layer).out();
    std::vector<std::vector<float>> rows;
    const auto row = all.size() / static_cast<std::size_t>(sequences_);
    for (std::size_t s = 0; s < static_cast<std::size_t>(sequences_); ++s)
      rows.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(s * row),
                        all.begin() + static_cast<std::ptrdiff_t>((s + 1) * row));
    return rows;
  }
  std::vector<std::vector<float>> step(int layer, float mass = 0, int observe = 0) {
    EXPECT_WORKS(launch(layer, mass, observe));
    return outputs(layer);
  }
  std::vector<float> exact(int layer, int s, std::int32_t tokens) {
    return attend_dense(context(), cache(layer, s), cache(layer, s).view(tokens), query(layer, s));
  }

 private:
  tactic_options options_;
  int sequences_ = 0;
  std::vector<std::unique_ptr<TopicCache>> caches_;  // [layers, sequences]
  std::vector<std::unique_ptr<DeviceBatch>> memory_;
  std::vector<tactic_cuda_kv> views_;
  std::vector<std::vector<std::vector<float>>> queries_;  // [layers][S]
  BatchPtr batch_;
  ContextPtr context_ = make_context(1);
  std::vector<SequencePtr> on_cpu_;
  DeviceArray<std::byte> scratch_;
};

// Outputs of a sequence whose neighbours changed: the work is cut by all lists, so sums may be added in another order.
inline void expect_untouched(const std::vector<float>& now, const std::vector<float>& before) {
  ASSERT_EQ(now.size(), before.size());
  for (std::size_t i = 0; i < now.size(); ++i)
    ASSERT_NEAR(now[i], before[i], 1e-4f + std::abs(before[i]) / 128) << "element " << i << " of the other sequence";
}

// |a - b|^2 and |b|^2 added up.
struct Distance {
  double apart = 0, size = 0;
  void add(const std::vector<float>& a, const std::vector<float>& b) {
    for (std::size_t i = 0; i < b.size(); ++i) apart += std::pow(a[i] - b[i], 2), size += static_cast<double>(b[i]) * b[i];
  }
  double relative() const { return std::sqrt(apart / size); }
};

}  // namespace tactic::test
