// Graph replays with a cold L2 cache; results as CSV.
#include <algorithm>
#include <stdexcept>

#include "harness.h"

namespace tactic::bench::gpu {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

namespace {

constexpr std::size_t kSweepWords = 64u << 20;  // 256 MB, four times the L2 of an H200

__global__ void fill_words(std::uint32_t* words, std::size_t count) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count; i += step)
    words[i] = static_cast<std::uint32_t>(i * 2654435761u);
}

__global__ void read_words(const uint4* words, std::size_t count, std::uint32_t* sink) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  std::uint32_t mixed = 0;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count; i += step) {
    const uint4 w = words[i];
    mixed ^= w.x ^ w.y ^ w.z ^ w.w;
  }
  if (mixed == 0x12345u) *sink = mixed;  // never: keeps the reads
}

}  // namespace

Timer::Timer(int repetitions) : repetitions_(repetitions), sweep_(kSweepWords), sink_(1) {
  check(cudaStreamCreate(&stream_), "cudaStreamCreate");
  check(cudaEventCreate(&begin_), "cudaEventCreate");
  check(cudaEventCreate(&end_), "cudaEventCreate");
  fill_words<<<1024, 256, 0, stream_>>>(sweep_.data(), kSweepWords);
  check(cudaStreamSynchronize(stream_), "fill");
}

Timer::~Timer() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
  cudaStreamDestroy(stream_);
}

void Timer::sweep() {
  read_words<<<1024, 256, 0, stream_>>>(reinterpret_cast<const uint4*>(sweep_.data()), kSweepWords / 4, sink_.data());
}

Times Timer::operator()(int layers, const Call& call) {
  call(0, stream_);  // loads kernels outside of the capture
  check(cudaStreamSynchronize(stream_), "first call");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  for (int layer = 0; layer < layers; ++layer) call(layer, stream_);
  check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  for (int i = 0; i < 2; ++i) check(cudaGraphLaunch(replay, stream_), "cudaGraphLaunch");
  std::vector<double> times;
  for (int i = 0; i < repetitions_; ++i) {
    sweep();
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    check(cudaGraphLaunch(replay, stream_), "cudaGraphLaunch");
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "replay");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    times.push_back(milliseconds * 1000.0 / layers);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  const std::size_t n = times.size();
  return {times[n / 2], times[n / 10], times[n * 9 / 10]};
}

Results::Results(const std::string& path) : file_(std::fopen(path.c_str(), "w"), &std::fclose) {
  if (file_ == nullptr) throw std::runtime_error("cannot write " + path);
  std::fputs("what,variant,q_heads,kv_heads,head_dim,batch,context,share,layers,us,p10,p90,bytes,error,note\n", file_.get());
}

void Results::add(const Row& row) {
  const double rate = row.times.median > 0 ? row.bytes / row.times.median / 1e6 : 0;
  std::printf("%-14s %-22s %d/%d d%-3d %2d x %6lld %5.3f %9.2f us %5.2f TB/s  %s\n", row.what.c_str(), row.variant.c_str(),
              row.q_heads, row.kv_heads, row.head_dim, row.batch, static_cast<long long>(row.context), row.share,
              row.times.median, rate, row.note.c_str());
  std::fflush(stdout);
  std::fprintf(file_.get(), "%s,\"%s\",%d,%d,%d,%d,%lld,%.4f,%d,%.2f,%.2f,%.2f,%.0f,%s,\"%s\"\n", row.what.c_str(),
               row.variant.c_str(), row.q_heads, row.kv_heads, row.head_dim, row.batch, static_cast<long long>(row.context),
               row.share, row.layers, row.times.median, row.times.p10, row.times.p90, row.bytes, row.error.c_str(),
               row.note.c_str());
  std::fflush(file_.get());
}

}  // namespace tactic::bench::gpu
