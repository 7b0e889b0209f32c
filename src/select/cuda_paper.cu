// Algorithm 1 of the paper on the device: CUB sorts the clusters of every query head, one block a head samples, fits and finds k,
// and a bitmap unites the heads of a group.
#include <cub/device/device_segmented_radix_sort.cuh>

#include "select/cuda_exported.h"
#include "select/cuda_score.h"
#include "select/paper_fit.h"

namespace tactic::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct PaperTask {
  SelectTask select;
  FitShares shares;
  float mass;
  float* keys;            // [slots, G, capacity] sorted logits
  std::int32_t* columns;  // [slots, G, capacity] 0 .. capacity - 1
  std::int32_t* order;    // [slots, G, capacity] columns, most promising first
  std::int32_t* first;    // [slots, G] of a head in the above
  std::int32_t* last;     // [slots, G] behind its columns in use
  std::int32_t* start;    // [slots, G, capacity + 1] tokens before a place of the order
  float* weight;          // [slots, G, token_capacity] exact weights of the first tokens in order
  std::int32_t* budget;   // [slots, G] k
  std::uint32_t* bits;    // [slots, words] tokens of the union
  std::int32_t words;
  void* sort_scratch;
  std::size_t sort_bytes;
};

__global__ void prepare_kernel(const __grid_constant__ PaperTask task) {
  wait_for_predecessor();
  const int group = task.select.query.shape.group();
  const int head = static_cast<int>(blockIdx.x);
  const int slot = head / group;
  const int capacity = task.select.index.capacity;
  for (int c = static_cast<int>(threadIdx.x); c < capacity; c += static_cast<int>(blockDim.x)) {
    task.columns[static_cast<std::int64_t>(head) * capacity + c] = c;
  }
  if (threadIdx.x == 0) {
    const int count = task.select.index.clusters[slot];
    task.first[head] = head * capacity;
    task.last[head] = head * capacity + (count >= 0 && count <= capacity ? count : 0);
  }
  if (head % group != 0) return;
  for (int w = static_cast<int>(threadIdx.x); w < task.words; w += static_cast<int>(blockDim.x)) {
    task.bits[static_cast<std::int64_t>(slot) * task.words + w] = 0;
  }
}

// One query head.
class PaperHead {
 public:
  __device__ explicit PaperHead(const PaperTask& task)
      : task_(task),
        group_(task.select.query.shape.group()),
        number_(static_cast<int>(blockIdx.x)),
        slot_(number_ / group_),
        sequence_(slot_ / task.select.kv.kv_heads),
        kv_head_(slot_ % task.select.kv.kv_heads),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        count_(task.last[number_] - task.first[number_]) {
    const auto at = static_cast<std::int64_t>(number_);
    order_ = task.order + at * task.select.index.capacity;
    start_ = task.start + at * (task.select.index.capacity + 1);
    weight_ = task.weight + at * task.select.index.token_capacity;
    begin_ = task.select.index.begin + static_cast<std::int64_t>(slot_) * (task.select.index.capacity + 64);
    tokens_ = task.select.index.tokens + static_cast<std::int64_t>(slot_) * task.select.index.token_capacity;
    reference_ = task.select.lists.reference[number_];
  }

  __device__ void find_budget() {
    count_starts();
    const int n = start_[count_];
    if (n == 0) {
      if (threadIdx.x == 0) task_.budget[number_] = 0;
      return;
    }
    const FitPlaces places = fit_places(n, task_.shares);
    for (int place = warp_; place < places.head; place += kWarps) {
      const float w = weight_of(place);
      if (lane_ == 0) weight_[place] = w;
    }
    Fit fit{};
    if (places.head < n) {
      const double first = mean(places.first_begin, places.first_end), second = mean(places.second_begin, places.second_end);
      fit = fit_curve(static_cast<double>(places.first), first, static_cast<double>(places.second), second);
    }
    __syncthreads();
    cut(n, places.head, fit);
  }

  // Its first k tokens into the bitmap of the group.
  __device__ void mark() const {
    const int k = task_.budget[number_];
    std::uint32_t* bits = task_.bits + static_cast<std::int64_t>(slot_) * task_.words;
    for (int place = warp_; place < count_; place += kWarps) {
      const int left = k - start_[place];
      if (left <= 0) break;
      const int c = order_[place];
      const int size = min(begin_[c + 1] - begin_[c], left);
      for (int i = lane_; i < size; i += 32) {
        const int token = tokens_[begin_[c] + i];
        if (token >= 0 && token / 32 < task_.words) {
          atomicOr(bits + token / 32, 1u << (token % 32));
        } else {
          atomicOr(task_.select.status + sequence_, device_status::bad_index);
        }
      }
    }
  }

 private:
  __device__ void count_starts() {
    __shared__ std::int32_t sums[kThreads];
    const int each = (count_ + kThreads - 1) / kThreads;
    const int first = min(static_cast<int>(threadIdx.x) * each, count_), last = min(first + each, count_);
    int own = 0;
    for (int i = first; i < last; ++i) own += begin_[order_[i] + 1] - begin_[order_[i]];
    sums[threadIdx.x] = own;
    __syncthreads();
    int before = 0;
    for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) before += sums[t];
    for (int i = first; i < last; ++i) {
      start_[i] = before;
      before += begin_[order_[i] + 1] - begin_[order_[i]];
    }
    if (threadIdx.x == kThreads - 1) start_[count_] = before;
    __syncthreads();
  }

  // A warp: exp(q . k - reference) of the token at a place of the order.
  __device__ float weight_of(int place) const {
    int low = 0, high = count_;  // start_[low] <= place < start_[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (start_[middle] <= place ? low : high) = middle;
    }
    const int token = tokens_[begin_[order_[low]] + place - start_[low]];
    const DeviceKv& kv = task_.select.kv;
    const DeviceQuery& query = task_.select.query;
    const int length = kv.lengths[sequence_];
    const std::byte* row = token >= 0 && token < length ? row_of(task_.select, sequence_, kv_head_, token) : nullptr;
    if (row == nullptr) return 0;
    const auto* q = static_cast<const std::byte*>(query.q) + sequence_ * query.sequence_stride;
    const std::int64_t q_at = (static_cast<std::int64_t>(kv_head_) * group_ + number_ % group_) * query.shape.head_dim;
    float dot = 0;
    for (int i = lane_ * 8; i < kv.k.dim; i += 256) {
      const uint4 bits =
          kv.k.type == DeviceType::bf16 ? *reinterpret_cast<const uint4*>(row + i * 2) : convert_to_bf16(row, kv.k.type, i);
      const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&bits);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 k = __bfloat1622float2(pairs[j]);
        dot = fmaf(k.x, load_element(q, query.type, q_at + i + 2 * j), dot);
        dot = fmaf(k.y, load_element(q, query.type, q_at + i + 2 * j + 1), dot);
      }
    }
#pragma unroll
    for (int o = 16; o > 0; o /= 2) dot += __shfl_xor_sync(~0u, dot, o);
    return exp2_fast(finish_logit(query, dot * kv.k.scale) - reference_ * kLog2E);
  }

  __device__ double mean(std::int64_t begin, std::int64_t end) const {
    __shared__ double sums[kWarps];
    double own = 0;
    for (std::int64_t place = begin + warp_; place < end; place += kWarps)
      own += static_cast<double>(weight_of(static_cast<int>(place)));
    __syncthreads();
    if (lane_ == 0) sums[warp_] = own;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w];
    return sum / static_cast<double>(end - begin);
  }

  // k: the fewest tokens whose weights, exact up to `head` and fitted behind it, reach P of the sum.
  __device__ void cut(int n, std::int64_t head, const Fit& fit) {
    __shared__ double sums[kThreads];
    const auto value = [&](int i) {
      if (i < head) return static_cast<double>(weight_[i]);
      const double fitted = fit.a / static_cast<double>(i + 1) + fit.b;
      return fitted > 0 ? fitted : 0.0;
    };
    const int each = (n + kThreads - 1) / kThreads;
    const int first = min(static_cast<int>(threadIdx.x) * each, n), last = min(first + each, n);
    double own = 0;
    for (int i = first; i < last; ++i) own += value(i);
    sums[threadIdx.x] = own;
    __syncthreads();
    const double fixed = fixed_share();
    double before = fixed, sum = fixed;
    for (int t = 0; t < kThreads; ++t) {
      if (t < static_cast<int>(threadIdx.x)) before += sums[t];
      sum += sums[t];
    }
    const double wanted = static_cast<double>(task_.mass) * sum;
    if (!isfinite(sum)) {
      if (threadIdx.x == 0) task_.budget[number_] = n;
    } else if (fixed >= wanted) {
      if (threadIdx.x == 0) task_.budget[number_] = 0;
    } else if (before < wanted && (before + own >= wanted || last == n) && first < last) {
      int k = first;
      for (double up_to = before; k < last && up_to < wanted; ++k) up_to += value(k);
      task_.budget[number_] = k;
    }
  }

  // Of the always-attended tokens: what the centroids leave of the estimated total.
  __device__ double fixed_share() const {
    __shared__ double sums[kThreads];
    const float* share = task_.select.exported.share + static_cast<std::int64_t>(number_) * task_.select.index.capacity;
    double own = 0;
    for (int c = static_cast<int>(threadIdx.x); c < count_; c += kThreads) own += static_cast<double>(exp2_fast(share[c]));
    sums[threadIdx.x] = own;
    __syncthreads();
    double sum = 0;
    for (int t = 0; t < kThreads; ++t) sum += sums[t];
    return sum < 1 ? 1 - sum : 0;
  }

  const PaperTask& task_;
  int group_, number_, slot_, sequence_, kv_head_, warp_, lane_, count_;
  const std::int32_t* order_;
  std::int32_t* start_;
  float* weight_;
  const std::int32_t* begin_;
  const std::int32_t* tokens_;
  float reference_;
};

__global__ void __launch_bounds__(kThreads) budget_kernel(const __grid_constant__ PaperTask task) {
  PaperHead(task).find_budget();
}
__global__ void __launch_bounds__(kThreads) mark_kernel(const __grid_constant__ PaperTask task) { PaperHead(task).mark(); }

// One (sequence, KV head): the bitmap's tokens in ascending order.
__global__ void __launch_bounds__(kThreads) unite_kernel(const __grid_constant__ PaperTask task) {
  __shared__ std::int32_t counts[kWarps];
  const int slot = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const DeviceLists& lists = task.select.lists;
  const std::uint32_t* bits = task.bits + static_cast<std::int64_t>(slot) * task.words;
  std::int32_t* to = lists.tokens + static_cast<std::int64_t>(slot) * lists.token_stride;
  int done = 0;
  for (int base = 0; base < task.words; base += kThreads) {
    const int w = base + static_cast<int>(threadIdx.x);
    std::uint32_t word = w < task.words ? bits[w] : 0;
    int place = __popc(word);
    const int own = place;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, place, o);
      if (lane >= o) place += other;
    }
    if (lane == 31) counts[warp] = place;
    __syncthreads();
    int before = done;
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) before += counts[i];
      done += counts[i];
    }
    for (int at = before + place - own; word != 0; word &= word - 1) to[at++] = w * 32 + __ffs(static_cast<int>(word)) - 1;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    lists.token_first[slot] = 0;
    lists.token_count[slot] = done;
    lists.represented_count[slot] = 0;
  }
}

std::size_t sort_bytes(int heads, int capacity) {
  std::size_t bytes = 0;
  const float* keys = nullptr;
  const std::int32_t* values = nullptr;
  check(cub::DeviceSegmentedRadixSort::SortPairsDescending(nullptr, bytes, keys, static_cast<float*>(nullptr), values,
                                                           static_cast<std::int32_t*>(nullptr), heads * capacity, heads, values,
                                                           values),
        "scratch of the sort");
  return bytes;
}

std::size_t carve(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index, void* scratch, PaperTask& task) {
  const auto slots = static_cast<std::size_t>(kv.sequences) * static_cast<std::size_t>(kv.kv_heads);
  const std::size_t heads = slots * static_cast<std::size_t>(query.shape.group());
  const std::size_t cells = heads * static_cast<std::size_t>(index.capacity);
  Carver carver(scratch);
  task.words = (kv.max_length + 31) / 32;
  task.keys = carver.take<float>(cells);
  task.columns = carver.take<std::int32_t>(cells);
  task.order = carver.take<std::int32_t>(cells);
  task.first = carver.take<std::int32_t>(heads);
  task.last = carver.take<std::int32_t>(heads);
  task.start = carver.take<std::int32_t>(cells + heads);
  task.weight = carver.take<float>(heads * static_cast<std::size_t>(index.token_capacity));
  task.budget = carver.take<std::int32_t>(heads);
  task.bits = carver.take<std::uint32_t>(slots * static_cast<std::size_t>(task.words));
  task.sort_bytes = sort_bytes(static_cast<int>(heads), index.capacity);
  task.sort_scratch = carver.take<std::byte>(task.sort_bytes);
  return carver.used();
}

}  // namespace

std::size_t paper_scratch_bytes(const DeviceQuery& query, const DeviceKv& kv, const DeviceIndex& index) {
  PaperTask task{};
  return carve(query, kv, index, nullptr, task);
}

void choose_by_paper(const SelectTask& select, const Options& options, void* scratch, DeviceStream stream) {
  PaperTask task{};
  task.select = select;
  task.shares = {options.fit_head, options.fit_window, options.fit_first, options.fit_second};
  task.mass = options.mass;
  carve(select.query, select.kv, select.index, scratch, task);
  const int slots = select.kv.sequences * select.kv.kv_heads;
  const int heads = slots * select.query.shape.group();
  Launch per_head;
  per_head.grid = static_cast<unsigned>(heads);
  per_head.block = kThreads;
  Launch per_slot = per_head;
  per_slot.grid = static_cast<unsigned>(slots);
  launch("columns of the sort", prepare_kernel, per_head, stream, task);
  check(cub::DeviceSegmentedRadixSort::SortPairsDescending(task.sort_scratch, task.sort_bytes, select.exported.logit, task.keys,
                                                           task.columns, task.order, heads * select.index.capacity, heads,
                                                           task.first, task.last, 0, 32, stream),
        "sort of the clusters");
  launch("budgets of Algorithm 1", budget_kernel, per_head, stream, task);
  launch("union of the heads", mark_kernel, per_head, stream, task);
  launch("list of the union", unite_kernel, per_slot, stream, task);
}

}  // namespace tactic::cuda
