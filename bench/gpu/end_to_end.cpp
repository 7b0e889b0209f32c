// Decoding with a whole 8B-shaped model: full attention against Tactic, clustering included (paper Fig. 12; prefill.py times the
// prefill).
//
// Random weights attend to nothing in particular, so attention reads synthetic queries and caches (synthetic.h): the projections
// and RoPE of the step run all the same, and its new K and V rows are appended. Where the caches of 32 layers do not fit, layers
// share those of kCaches: far more than the L2 cache holds lies between two uses.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "decoder.h"
#include "session.h"
#include "synthetic.h"
#include "tactic_layers.h"

namespace tactic::bench::gpu {
namespace {

constexpr int kGenerated = 1024;      // tokens that the caches have room for behind the prompt
constexpr double kCacheBytes = 72e9;  // of K and V; weights take 15 GB, indexes and scratch a few more
constexpr int kFullSteps = 24;     // replays of the slow step; its cost grows by n / context over n steps, which the report adds
constexpr int kPromptRecent = 64;  // of the prompt that is not clustered

// Replays of a captured step, one after the other, microseconds a step: mean over them, since each is another step.
class Generation {
 public:
  Generation(Decoder& decoder, const std::vector<Decoder::Cache>& caches, std::int32_t* lengths, const Attention& attention,
             cudaStream_t stream)
      : stream_(stream) {
    decoder.step(caches, lengths, attention, stream);  // loads kernels; the capture's own lengths are set later
    check(cudaStreamSynchronize(stream), "first step");
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    decoder.step(caches, lengths, attention, stream);
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&replay_, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~Generation() {
    cudaGraphExecDestroy(replay_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  double microseconds(int steps) {
    for (int i = 0; i < 2; ++i) check(cudaGraphLaunch(replay_, stream_), "cudaGraphLaunch");
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    for (int i = 0; i < steps; ++i) check(cudaGraphLaunch(replay_, stream_), "cudaGraphLaunch");
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "steps");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return milliseconds * 1000.0 / steps;
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t replay_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

void measure_decoder(const Session& session, const Pool& pool, const Cell& cell) {
  const DecoderShape shape;
  Case c{.q_heads = shape.q_heads,
         .kv_heads = shape.kv_heads,
         .head_dim = shape.head_dim,
         .batch = cell.batch,
         .context = cell.context + kGenerated,
         .k = {},
         .v = {}};
  pool.cut(c);
  c.layers = std::min(c.layers, shape.layers);
  c.k.resize(static_cast<std::size_t>(c.layers)), c.v.resize(static_cast<std::size_t>(c.layers));
  const SyntheticQueries queries = fill_synthetic(c, {}, 1);
  Options options = pipeline("tactic", session.settings.masses.front(), session.settings.cluster_sizes.front());
  options.recent_tokens = kPromptRecent;
  TacticLayers layers(c, queries, options, cell.context, kPromptRecent);
  const DeviceArray<float> metrics = query_metrics(c, queries, options.shrinkage);
  cudaStream_t stream = session.timer.stream();
  const std::string caches_note = std::to_string(c.layers) + " caches for 32 layers";
  const auto add = [&](const std::string& what, double us, double share, const std::string& note) {
    Row row = c.row(what, "P=" + std::to_string(layers.options().mass).substr(0, 5));
    row.context = cell.context, row.layers = shape.layers, row.share = share, row.note = note;
    row.times = {us, us, us};
    session.results.add(row);
  };
  add("decoder cluster", layers.cluster(&metrics, stream) * shape.layers, 1, "all layers, all sequences; " + caches_note);
  if (!session.settings.shares.empty() && session.settings.shares.front() < 1)
    layers.steer(session.settings.shares.front(), stream);
  const TacticLayers::Choice choice = layers.choose(stream);
  const double error = layers.error(stream);
  Decoder decoder(shape, cell.batch);
  std::vector<Decoder::Cache> caches;
  for (int i = 0; i < shape.layers; ++i) {
    const auto at = static_cast<std::size_t>(i % c.layers);
    caches.push_back({c.k[at], c.v[at], c.context});
  }
  const auto timed = [&](const Attention& attention, int steps) {
    DeviceArray<std::int32_t> start(static_cast<std::size_t>(cell.batch));
    const std::vector<std::int32_t> prompt(static_cast<std::size_t>(cell.batch), static_cast<std::int32_t>(cell.context));
    check(cudaMemcpy(layers.lengths(), prompt.data(), prompt.size() * sizeof(std::int32_t), cudaMemcpyHostToDevice), "lengths");
    Generation generation(decoder, caches, layers.lengths(), attention, stream);
    return generation.microseconds(steps);
  };
  add("decoder rest", timed({}, 64), 0, "the step without attention");
  add("decoder full",
      timed([&](int layer, const DeviceOutput& out, cudaStream_t s) { layers.dense(layer % c.layers, out, s); }, kFullSteps), 1,
      caches_note);
  char note[160];
  std::snprintf(note, sizeof note,
                "%d steps from the prompt's end on, nothing reclustered; listed %.2f%%; attention off by %.4f; status %u",
                kGenerated - 8, 100 * choice.share, error, layers.status());
  add("decoder tactic",
      timed([&](int layer, const DeviceOutput& out, cudaStream_t s) { layers.step(layer % c.layers, out, s); }, kGenerated - 8),
      choice.share, note);
}

}  // namespace

void measure_end_to_end(const Session& session) {
  const Pool pool(std::min(session.settings.pool_gigabytes * 1e9, kCacheBytes));
  for (const Cell& cell : session.settings.cells) measure_decoder(session, pool, cell);
}

}  // namespace tactic::bench::gpu
