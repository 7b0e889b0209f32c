// Goal mass: every head gets P of its mass with few tokens (the lambda rule of select/choose_cpu.cpp), one thread block per
// (sequence, KV head). Cuts are found in histograms of the logarithm of a score, 1/16 octave a bin: no sort, and the sums are
// integers, so that the result does not depend on the order of additions.
#include <algorithm>

#include "core/error.h"
#include "select/cuda_device.h"
#include "select/cuda_exported.h"
#include "select/cuda_lists.h"
#include "select/cuda_mass.h"

namespace tactic::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr float kShareUnit = 1u << 30;  // of the integer sums: shares add up to at most 1
constexpr int kRounds = 4;              // of prices, as select/choose_cpu.cpp
constexpr float kLeastPrice = 1e-3f;
// Columns given back: what is left over does no harm, and looking for all of them took 17 us at 1 x 32K, more than reading them.
constexpr int kMostGivenBack = 4;

class MassChoice {
 public:
  __device__ MassChoice(const MassTask& task, const MassShared& shared)
      : task_(task),
        shared_(shared),
        slot_(static_cast<int>(blockIdx.x)),
        group_(task.select.group),
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
    if (shared_.share != nullptr) {  // every look at them is a trip to L2 otherwise
      for (int g = 0; g < group_; ++g) {
        const std::int64_t row = static_cast<std::int64_t>(g) * task_.select.index.capacity;
#pragma unroll 4
        for (int c = thread(); c < count_; c += kThreads) shared_.share[row + c] = share_[row + c];
      }
      share_ = shared_.share;
    }
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
    if (cut >= 0) prune();
  }

  // Gives back the columns that every head can spare, the least dense first: what its whole bin brought in beyond the cut, and
  // what denser ones have made needless. A candidate fits into what every head has too much of; more than kBins of them are kept.
  __device__ void prune() {
    clear(group_ + 1);
    std::int32_t* count = shared_.state;
    if (thread() == 0) *count = 0;
    for (int g = 0; g < group_; ++g) {
      std::uint32_t own = 0;
      for (int c = thread(); c < count_; c += kThreads)
        own += shared_.code[c] == kAttended && shared_.cut[g] >= 0 ? __float2uint_rn(exp2_fast(share(g, c)) * kShareUnit) : 0;
      own = __reduce_add_sync(~0u, own);
      if (lane_ == 0) atomicAdd(shared_.sum + g, own);
    }
    __syncthreads();
    if (thread() < group_)
      shared_.reached[thread()] = static_cast<float>(shared_.sum[thread()]) / kShareUnit - shared_.need[thread()];  // to spare
    __syncthreads();
    auto* spare = reinterpret_cast<float*>(shared_.sum);  // [G + 1, kBins] shares of candidates, their scores
    for (int c = thread(); c < count_; c += kThreads) {
      bool fits = shared_.code[c] == kAttended;
      for (int g = 0; g < group_; ++g) fits = fits && (shared_.cut[g] < 0 || exp2_fast(share(g, c)) <= shared_.reached[g]);
      if (!fits) continue;
      const int i = atomicAdd(count, 1);
      if (i >= kBins) continue;
      for (int g = 0; g < group_; ++g) spare[g * kBins + i] = shared_.cut[g] < 0 ? 0.0f : exp2_fast(share(g, c));
      spare[group_ * kBins + i] = score(shared_.best_price, c);
      shared_.places[i] = c;
    }
    __syncthreads();
    const int candidates = *count;
    for (int i = 0; i < kMostGivenBack && candidates <= kBins && give_back_one(spare, candidates); ++i) continue;
    __syncthreads();
  }

  // The candidate of the lowest score that still fits, of equal ones the last column; false: none. All threads.
  __device__ bool give_back_one(float* spare, int count) {
    std::uint32_t least = ~0u;
    int column = -1, place = 0;
    for (int i = thread(); i < count; i += kThreads) {
      bool fits = true;
      for (int g = 0; g < group_; ++g) fits &= spare[g * kBins + i] <= shared_.reached[g];
      const std::uint32_t bits = __float_as_uint(spare[group_ * kBins + i]);
      const std::uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;  // orders like the score
      const int c = shared_.places[i];
      if (fits && (key < least || (key == least && c > column))) least = key, column = c, place = i;
    }
    const std::uint32_t of_warp = __reduce_min_sync(~0u, least);
    const int last = __reduce_max_sync(~0u, least == of_warp ? column : -1);
    if (lane_ == 0) shared_.count[warp_] = static_cast<std::int32_t>(of_warp), shared_.count[32 + warp_] = last;
    __syncthreads();
    const std::uint32_t key = lane_ < kWarps ? static_cast<std::uint32_t>(shared_.count[lane_]) : ~0u;
    const std::uint32_t of_block = __reduce_min_sync(~0u, key);
    const int given = __reduce_max_sync(~0u, lane_ < kWarps && key == of_block ? shared_.count[32 + lane_] : -1);
    if (given >= 0 && column == given) {
      for (int g = 0; g < group_; ++g) {
        shared_.reached[g] -= spare[g * kBins + place];
        spare[g * kBins + place] = 2;  // more than any head has
      }
      shared_.code[column] = kDropped;
    }
    __syncthreads();
    return given >= 0;
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

  // This warp's stretch of columns, a lane a column: f(column, code, lanes of attended ones, lanes of represented ones).
  template <typename F>
  __device__ void for_each_code(F&& f) const {
    const int stride = ((count_ + kWarps - 1) / kWarps + 31) / 32 * 32;
    const int from = min(warp_ * stride, count_), to = min(from + stride, count_);
    for (int first = from; first < to; first += 32) {
      const int c = first + lane_;
      const int code = c < to ? shared_.code[c] : static_cast<int>(kDropped);
      f(c, code, __ballot_sync(~0u, code == kAttended), __ballot_sync(~0u, code == kRepresented));
    }
  }
  __device__ int size(int c, int code) const { return code == kAttended ? shared_.begin[c + 1] - shared_.begin[c] : 0; }

  __device__ void write() {
    int tokens = 0, columns = 0, represented = 0;
    for_each_code([&](int c, int code, std::uint32_t attended, std::uint32_t tail) {
      tokens += size(c, code);
      columns += __popc(attended);
      represented += __popc(tail);
    });
    tokens = __reduce_add_sync(~0u, tokens);
    if (lane_ == 0) shared_.count[warp_] = tokens, shared_.count[32 + warp_] = columns, shared_.count[64 + warp_] = represented;
    __syncthreads();
    int before[3], all[3];
    for (int i = 0; i < 3; ++i) {
      const int own = lane_ < kWarps ? shared_.count[32 * i + lane_] : 0;
      before[i] = __reduce_add_sync(~0u, lane_ < warp_ ? own : 0);
      all[i] = __reduce_add_sync(~0u, own);
    }
    const DeviceLists& lists = task_.select.lists;
    const ChosenColumns chosen{shared_.places, shared_.sources};
    for_each_code([&](int c, int code, std::uint32_t attended, std::uint32_t tail) {
      const std::uint32_t earlier = (1u << lane_) - 1;
      if (code == kRepresented) list_represented(c, before[2] + __popc(tail & earlier));
      before[2] += __popc(tail);
      int place = size(c, code);  // inclusive scan over the lanes
      for (int o = 1; o < 32; o *= 2) {
        const int other = __shfl_up_sync(~0u, place, o);
        if (lane_ >= o) place += other;
      }
      if (code == kAttended)
        chosen.set(before[1] + __popc(attended & earlier), before[0] + place - size(c, code), shared_.begin[c]);
      before[0] += __shfl_sync(~0u, place, 31);
      before[1] += __popc(attended);
    });
    if (thread() == 0) {
      lists.token_first[slot_] = 0;
      lists.token_count[slot_] = all[0];
      lists.represented_count[slot_] = all[2];
    }
    __syncthreads();
    const std::int64_t of_slot = static_cast<std::int64_t>(slot_) * task_.select.index.token_capacity;
    list_tokens(chosen, all[1], all[0], task_.select.index.tokens + of_slot, lists.tokens + of_slot);
  }

  __device__ void list_represented(int c, int place) const {
    const DeviceLists& lists = task_.select.lists;
    const std::int64_t at = static_cast<std::int64_t>(slot_) * lists.represented_stride + place;
    lists.represented[at] = c;
    for (int g = 0; g < group_; ++g)
      lists.log_weight[at * group_ + g] = kLn2 * weight_[static_cast<std::int64_t>(g) * task_.select.index.capacity + c];
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
  shared.place(memory, task.select.group, task.select.index.capacity, task.shares);
  wait_for_predecessor();
  let_successor_start();
  MassChoice(task, shared).run();
}

}  // namespace

void choose_by_mass(const SelectTask& task, const Options& options, DeviceStream stream) {
  const auto most = static_cast<std::size_t>(device_facts().shared_bytes);
  const auto measure = [&](bool shares) { return MassShared().place(nullptr, task.group, task.index.capacity, shares); };
  const bool shares = measure(true) <= most;
  const std::size_t bytes = measure(shares);
  check_shared_bytes("goal mass", task.index.capacity, bytes, most, "goal error or a larger cluster_size");
  check(cudaFuncSetAttribute(mass_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of the choice by mass");
  Launch shape;
  shape.grid = static_cast<unsigned>(task.kv.sequences * task.kv.kv_heads);
  shape.block = kThreads;
  shape.shared_bytes = bytes;
  shape.dependent = true;
  launch("choice by mass", mass_kernel, shape, stream,
         MassTask{task, options.mass, options.joint, options.tail_clusters, shares});
}

}  // namespace tactic::cuda
