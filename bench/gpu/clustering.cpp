// Clustering a prompt's layer (paper Table 6; prefill.py times the prefill beside it).
#include <cstdio>
#include <string>

#include "session.h"
#include "synthetic.h"
#include "tactic_layers.h"

namespace tactic::bench::gpu {

void measure_clustering(const Session& session) {
  const Pool pool(session.settings.pool_gigabytes * 1e9);
  for (const Heads& heads : session.settings.shapes) {
    for (const Cell& cell : session.settings.cells) {
      Case c = pool.cut(heads, cell);
      c.layers = std::min(c.layers, 4);
      const SyntheticQueries queries = fill_synthetic(c, {}, 1);
      for (const std::string& method : session.settings.methods) {
        for (const int size : session.settings.cluster_sizes) {
          const Options options = pipeline(method, 0.9, size);
          TacticLayers layers(c, queries, options);
          DeviceArray<float> metrics;
          if (options.metric == Metric::query) metrics = query_metrics(c, queries, options.shrinkage);
          const double us = layers.cluster(options.metric == Metric::query ? &metrics : nullptr, session.timer.stream());
          const auto n = static_cast<double>(c.context);
          const double passes = options.iterations * (1 - static_cast<double>(options.outlier_share)) + 1;
          const double flops = passes * n * (n / size) * 2 * c.head_dim * c.kv_heads * c.batch;
          Row row = c.row("clustering",
                          method + ", size " + std::to_string(size) + ", " + std::to_string(options.iterations) + " iterations");
          row.times = {us, us, us};
          char note[200];
          std::snprintf(
              note, sizeof note,
              "%.0f TFLOP/s of distances; x 32 layers = %.3f s; index %.1f%% of K and V, read per step %.2f%%; status %u",
              flops / us / 1e6, us * 32 / 1e6, 100 * layers.index_bytes() / c.layer_bytes(),
              100 * layers.index_step_bytes() / c.layer_bytes(), layers.status());
          row.note = note;
          session.results.add(row);
        }
      }
    }
  }
}

}  // namespace tactic::bench::gpu
