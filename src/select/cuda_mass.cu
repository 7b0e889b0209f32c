// Goal mass: every head gets P of its mass with few tokens (the lambda rule of select/choose_cpu.cpp), one thread block per
// (sequence, KV head). Cuts are found in histograms of the logarithm of a score, 1/16 octave a bin: no sort, and the sums are
// integers, so that the result does not depend on the order of additions.
#include <algorithm>

#include "core/error.h"
#include "select/cuda_exported.h"
#include "select/cuda_lists.h"

namespace tactic::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 1024;
constexpr float kBinsPerOctave = 16;
constexpr float kShareUnit = 1u << 30;  // of the integer sums: shares add up to at most 1
constexpr int kRounds = 4;              // of prices, as select/choose_cpu.cpp
constexpr float kLeastPrice = 1e-3f;

struct MassTask {
  SelectTask select;
  float mass;
  bool joint;
  int tail;  // most represented columns
};

struct MassShared {
  std::uint32_t* sum;   // [G + 1, kBins] shares of the heads by bin, tokens
  std::int32_t* count;  // [3, 32]
  float* price;         // [kMaxGroup]
  float* best_price;    // [kMaxGroup]
  float* need;          // [kMaxGroup] share that is missing; <= 0: nothing
  float* free;          // [kMaxGroup] share of all columns
  float* reached;       // [kMaxGroup] at the cut
  std::int32_t* cut;    // [kMaxGroup + 1] bins
  std::int32_t* state;  // [4] tokens of the round and of the best, cut of the best, cut of the tail
  std::int32_t* begin;  // [columns + 1]
  std::int32_t* numbers;
  std::int32_t* places;
  std::uint8_t* code;

  __host__ __device__ std::size_t place(std::byte* base, int group, int columns) {
    std::size_t at = 0;
    const auto take = [&](auto*& pointer, std::size_t size) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + at);
      at += (size * sizeof(*pointer) + 15) / 16 * 16;
    };
    const auto n = static_cast<std::size_t>(columns);
    take(sum, static_cast<std::size_t>(group + 1) * kBins);
    take(count, 3 * 32);
    for (float** values : {&price, &best_price, &need, &free, &reached}) take(*values, kMaxGroup);
    take(cut, kMaxGroup + 1);
    take(state, 4);
    take(begin, n + 1), take(numbers, n), take(places, n), take(code, n);
    return at;
  }
};

__device__ int bin_of(float log_score, float top) {
  return min(max(static_cast<int>((top - log_score) * kBinsPerOctave), 0), kBins - 1);
}

// One warp: the first bin up to which row `sum` holds `need`; kBins - 1 when none. held: the sum up to and with it.
__device__ int find_cut(const std::uint32_t* sum, std::uint32_t need, int lane, std::uint32_t* held) {
  constexpr int kEach = kBins / 32;
  std::uint32_t own = 0;
  for (int i = 0; i < kEach; ++i) own += sum[lane * kEach + i];
  std::uint32_t up_to = own;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const std::uint32_t other = __shfl_up_sync(~0u, up_to, o);
    if (lane >= o) up_to += other;
  }
  const std::uint32_t reached = __ballot_sync(~0u, up_to >= need);
  const int owner = reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : 31;
  std::uint32_t running = up_to - own;
  int bin = lane * kEach;
  for (int i = 0; i < kEach; ++i, ++bin) {
    running += sum[lane * kEach + i];
    if (running >= need || i == kEach - 1) break;
  }
  *held = __shfl_sync(~0u, running, owner);
  return __shfl_sync(~0u, min(bin, kBins - 1), owner);
}

// One warp: the sum of row `sum` up to and with bin `cut`.
__device__ std::uint32_t sum_to(const std::uint32_t* sum, int cut, int lane) {
  std::uint32_t own = 0;
  for (int i = lane; i <= cut; i += 32) own += sum[i];
  return __reduce_add_sync(~0u, own);
}

class MassChoice {
 public:
  __device__ MassChoice(const MassTask& task, const MassShared& shared)
      : task_(task),
        shared_(shared),
        slot_(static_cast<int>(blockIdx.x)),
        group_(task.select.query.shape.group()),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {
    const std::int64_t first = static_cast<std::int64_t>(slot_) * group_ * task.select.index.capacity;
    share_ = task.select.exported.share + first;
    weight_ = task.select.exported.weight + first;
    const int all = task.select.index.clusters[slot_];
    count_ = all >= 0 && all <= task.select.index.capacity ? all : 0;
  }

  __device__ void run() {
    load_begin();
    own_cuts();
    if (task_.joint) {
      solve_jointly();
    } else {
      for (int c = thread(); c < count_; c += kThreads) shared_.code[c] = taken_by_some_head(c) ? kAttended : kDropped;
    }
    __syncthreads();
    choose_tail();
    write();
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ float share(int g, int c) const { return share_[static_cast<std::int64_t>(g) * task_.select.index.capacity + c]; }
  __device__ float log_size(int c) const { return log2_fast(static_cast<float>(shared_.begin[c + 1] - shared_.begin[c])); }
  __device__ void clear(int rows) {
    for (int i = thread(); i < rows * kBins; i += kThreads) shared_.sum[i] = 0;
    __syncthreads();
  }

  __device__ void load_begin() {
    const std::int32_t* begin = task_.select.index.begin + static_cast<std::int64_t>(slot_) * (task_.select.index.capacity + 64);
    for (int c = thread(); c <= count_; c += kThreads) shared_.begin[c] = begin[c];
    clear(group_ + 1);
  }

  // The cut of each head's own order of density; the first prices are one over its threshold. Density is at most 1: top 0.
  __device__ void own_cuts() {
    for (int c = thread(); c < count_; c += kThreads) {
      const float n = log_size(c);
      for (int g = 0; g < group_; ++g) {
        const float s = share(g, c);
        if (s == s) atomicAdd(shared_.sum + g * kBins + bin_of(s - n, 0), __float2uint_rn(exp2_fast(s) * kShareUnit));
      }
    }
    __syncthreads();
    if (warp_ < group_) {
      const std::uint32_t* row = shared_.sum + warp_ * kBins;
      const float free = static_cast<float>(sum_to(row, kBins - 1, lane_)) / kShareUnit;
      const float need = task_.mass - (1 - free);  // what is not in columns is always attended
      std::uint32_t held;
      const int bin = find_cut(row, __float2uint_rn(fmaxf(need, 0.0f) * kShareUnit), lane_, &held);
      if (lane_ == 0) {
        const bool sound = count_ > 0 && isfinite(task_.select.lists.reference[slot_ * group_ + warp_]);
        shared_.need[warp_] = sound ? need : 0.0f;
        shared_.free[warp_] = free;
        shared_.cut[warp_] = sound && need > 0 ? bin : -1;
        shared_.price[warp_] = sound && need > 0 ? (static_cast<float>(bin) + 0.5f) / kBinsPerOctave : -1e30f;  // log
      }
    }
    __syncthreads();
  }

  __device__ bool taken_by_some_head(int c) const {
    const float n = log_size(c);
    bool taken = false;
    for (int g = 0; g < group_; ++g) taken = taken || bin_of(share(g, c) - n, 0) <= shared_.cut[g];
    return taken;
  }

  // log of sum_g price_g share_gc / n; heads without need have no price.
  __device__ float score(const float* log_price, int c) const {
    float sum = 0;
    for (int g = 0; g < group_; ++g) {
      if (shared_.cut[g] >= 0) sum += exp2_fast(fminf(share(g, c) + log_price[g], 100.0f));
    }
    return log2_fast(sum) - log_size(c);
  }

  static constexpr float kTop = kBins / kBinsPerOctave / 2;  // the cut's score is about 1: the middle

  __device__ void solve_jointly() {
    if (thread() == 0) shared_.state[1] = 0x7fffffff;
    for (int round = 0; round < kRounds; ++round) {
      clear(group_ + 1);
      for (int c = thread(); c < count_; c += kThreads) {
        const int bin = bin_of(score(shared_.price, c), kTop);
        for (int g = 0; g < group_; ++g) {
          const float s = share(g, c);
          if (shared_.cut[g] >= 0) atomicAdd(shared_.sum + g * kBins + bin, __float2uint_rn(exp2_fast(s) * kShareUnit));
        }
        atomicAdd(shared_.sum + group_ * kBins + bin, static_cast<std::uint32_t>(shared_.begin[c + 1] - shared_.begin[c]));
      }
      __syncthreads();
      if (warp_ < group_ && shared_.cut[warp_] >= 0) {
        std::uint32_t held;
        const int bin = find_cut(shared_.sum + warp_ * kBins, __float2uint_rn(shared_.need[warp_] * kShareUnit), lane_, &held);
        __syncwarp();
        if (lane_ == 0) shared_.cut[warp_] = bin;
      }
      __syncthreads();
      int cut = -1;
      for (int g = 0; g < group_; ++g) cut = max(cut, shared_.cut[g]);
      if (warp_ < group_) {
        const auto held = static_cast<float>(sum_to(shared_.sum + warp_ * kBins, cut, lane_)) / kShareUnit;
        if (lane_ == 0) shared_.reached[warp_] = held;
      } else if (warp_ == kWarps - 1) {
        const std::uint32_t tokens = sum_to(shared_.sum + group_ * kBins, cut, lane_);
        if (lane_ == 0) shared_.state[0] = static_cast<std::int32_t>(tokens);
      }
      __syncthreads();
      if (shared_.state[0] < shared_.state[1] && thread() < group_) shared_.best_price[thread()] = shared_.price[thread()];
      __syncthreads();
      if (thread() == 0 && shared_.state[0] < shared_.state[1]) {
        shared_.state[1] = shared_.state[0];
        shared_.state[2] = cut;
      }
      if (thread() < group_ && shared_.cut[thread()] >= 0) {
        const float excess = (shared_.free[thread()] - shared_.reached[thread()]) / fmaxf(1 - task_.mass, 1e-9f);
        shared_.price[thread()] += 2 * log2_fast(fminf(fmaxf(excess, kLeastPrice), 1.0f));
      }
      __syncthreads();
    }
    const int cut = shared_.state[2];
    for (int c = thread(); c < count_; c += kThreads) {
      shared_.code[c] = cut >= 0 && bin_of(score(shared_.best_price, c), kTop) <= cut ? kAttended : kDropped;
    }
  }

  // log of the largest share of any head that the mean V stands for.
  __device__ float tail_share(int c) const {
    float largest = -1e30f;
    for (int g = 0; g < group_; ++g) {
      const float total = task_.select.lists.reference[slot_ * group_ + g] * kLog2E;
      largest = fmaxf(largest, weight_[static_cast<std::int64_t>(g) * task_.select.index.capacity + c] - total);
    }
    return largest;
  }

  // The heaviest dropped columns, at most `tail`, in whole bins.
  __device__ void choose_tail() {
    if (task_.tail == 0) return;
    clear(1);
    for (int c = thread(); c < count_; c += kThreads) {
      if (shared_.code[c] == kDropped) atomicAdd(shared_.sum + bin_of(tail_share(c), 0), 1u);
    }
    __syncthreads();
    if (warp_ == 0) {
      std::uint32_t held;
      const int bin = find_cut(shared_.sum, static_cast<std::uint32_t>(task_.tail), lane_, &held);
      if (lane_ == 0) shared_.state[3] = held <= static_cast<std::uint32_t>(task_.tail) ? bin : bin - 1;
    }
    __syncthreads();
    for (int c = thread(); c < count_; c += kThreads) {
      if (shared_.code[c] == kDropped && bin_of(tail_share(c), 0) <= shared_.state[3]) shared_.code[c] = kRepresented;
    }
    __syncthreads();
  }

  __device__ void write() {
    const int stride = ((count_ + kWarps - 1) / kWarps + 31) / 32 * 32;
    const int from = min(warp_ * stride, count_), to = min(from + stride, count_);
    const ColumnSet set{slot_,           slot_,         0, warp_, kWarps, lane_, from, to, nullptr, shared_.code, shared_.begin,
                        shared_.numbers, shared_.places};
    int tokens = 0, chosen = 0, represented = 0;
    for (int c = from + lane_; c < to; c += 32) {
      tokens += shared_.code[c] == kAttended ? shared_.begin[c + 1] - shared_.begin[c] : 0;
      chosen += shared_.code[c] == kAttended ? 1 : 0;
      represented += shared_.code[c] == kRepresented ? 1 : 0;
    }
    tokens = __reduce_add_sync(~0u, tokens);
    chosen = __reduce_add_sync(~0u, chosen);
    represented = __reduce_add_sync(~0u, represented);
    if (lane_ == 0) {
      shared_.count[warp_] = tokens;
      shared_.count[32 + warp_] = chosen;
      shared_.count[64 + warp_] = represented;
    }
    __syncthreads();
    const Offsets of_tokens(shared_.count, set), of_chosen(shared_.count + 32, set), of_represented(shared_.count + 64, set);
    list_columns(task_.select.lists, set, group_, of_tokens.before, of_chosen.before, of_represented.before,
                 [&](int c, int g) { return kLn2 * weight_[static_cast<std::int64_t>(g) * task_.select.index.capacity + c]; });
    if (thread() == 0) {
      task_.select.lists.token_first[slot_] = 0;
      task_.select.lists.token_count[slot_] = of_tokens.all;
      task_.select.lists.represented_count[slot_] = of_represented.all;
    }
    __syncthreads();
    if (count_ > 0) list_tokens(task_.select.index, task_.select.lists, set, of_chosen.all);
  }

  const MassTask& task_;
  const MassShared& shared_;
  int slot_, group_, warp_, lane_, count_;
  const float* share_;
  const float* weight_;
};

__global__ void __launch_bounds__(kThreads) mass_kernel(const __grid_constant__ MassTask task) {
  extern __shared__ __align__(16) std::byte memory[];
  MassShared shared;
  shared.place(memory, task.select.query.shape.group(), task.select.index.capacity);
  wait_for_predecessor();
  let_successor_start();
  MassChoice(task, shared).run();
}

}  // namespace

void choose_by_mass(const SelectTask& task, const Options& options, DeviceStream stream) {
  MassShared measure;
  const std::size_t bytes = measure.place(nullptr, task.query.shape.group(), task.index.capacity);
  if (bytes > static_cast<std::size_t>(device_facts().shared_bytes)) {
    throw Error(Status::unsupported, "goal mass: " + std::to_string(task.index.capacity) + " clusters a KV head need " +
                                         std::to_string(bytes) + " bytes of shared memory a block, the device has " +
                                         std::to_string(device_facts().shared_bytes) +
                                         "; use goal error or a larger cluster_size");
  }
  check(cudaFuncSetAttribute(mass_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of the choice by mass");
  Launch shape;
  shape.grid = static_cast<unsigned>(task.kv.sequences * task.kv.kv_heads);
  shape.block = kThreads;
  shape.shared_bytes = bytes;
  shape.dependent = device_facts().clusters;
  launch("choice by mass", mass_kernel, shape, stream, MassTask{task, options.mass, options.joint, options.tail_clusters});
}

}  // namespace tactic::cuda
