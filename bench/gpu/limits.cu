// Bare reads: the limits that attention is measured against.
#include <string>

#include "limits.h"

namespace tactic::bench::gpu {
namespace {

// K and V one after the other, 16 bytes a thread, eight loads in flight. Evict-first, as nothing is read twice.
__global__ void stream_rows(const uint4* k, const uint4* v, std::int64_t count, std::uint32_t* sink) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::uint32_t mixed = 0;
  for (int side = 0; side < 2; ++side) {
    const uint4* from = side == 0 ? k : v;
    for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < count; i += 8 * step) {
      uint4 w[8];
#pragma unroll
      for (int u = 0; u < 8; ++u) w[u] = i + u * step < count ? __ldcs(from + i + u * step) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int u = 0; u < 8; ++u) mixed ^= w[u].x ^ w[u].y ^ w[u].z ^ w[u].w;
    }
  }
  if (mixed == 0x12345u) *sink = mixed;  // never: keeps the reads
}

// Rows of LANES * 16 bytes: K's of the whole list, then V's; so many rows in flight for each group of lanes.
template <int LANES, int ROWS>
__global__ void gather_rows(const char* k, const char* v, const std::int32_t* list, int count, std::uint32_t* sink) {
  const int lane = threadIdx.x % LANES;
  const int team = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, teams = gridDim.x * blockDim.x / LANES;
  std::uint32_t mixed = 0;
  for (int i = team; i < 2 * count; i += ROWS * teams) {
    uint4 w[ROWS];
#pragma unroll
    for (int u = 0; u < ROWS; ++u) {
      const int j = i + u * teams;
      const char* from = j < count ? k : v;
      w[u] = make_uint4(0, 0, 0, 0);
      if (j < 2 * count)
        w[u] = __ldcs(
            reinterpret_cast<const uint4*>(from + static_cast<std::int64_t>(list[j < count ? j : j - count]) * (LANES * 16)) +
            lane);
    }
#pragma unroll
    for (int u = 0; u < ROWS; ++u) mixed ^= w[u].x ^ w[u].y ^ w[u].z ^ w[u].w;
  }
  if (mixed == 0x12345u) *sink = mixed;
}

__global__ void nothing(std::uint32_t* sink) {
  if (sink == nullptr) *sink = 1;
}

// list [layers, batch, kv_heads, chosen]: row numbers, one token from each of `chosen` equal stretches of the context.
__global__ void choose_rows(std::int32_t* list, std::int64_t count, int chosen, std::int64_t context, int kv_heads, int batch) {
  const std::int64_t at = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (at >= count) return;
  const std::int64_t rank = at % chosen, head = at / chosen % kv_heads, request = at / chosen / kv_heads % batch;
  const double stretch = static_cast<double>(context) / chosen;
  const auto token = min(static_cast<std::int64_t>((static_cast<double>(rank) + uniform(9, at)) * stretch), context - 1);
  list[at] = static_cast<std::int32_t>((request * context + token) * kv_heads + head);
}

int processors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute");
  return count;
}

void keep_better(Row& best, Row row) {
  if (best.layers == 0 || row.times.median < best.times.median) best = std::move(row);
}

// Row numbers of all layers, one behind the other.
struct RowLists {
  DeviceArray<std::int32_t> rows;
  std::vector<std::int64_t> first;  // [layers + 1]

  int count(int layer) const {
    const auto at = static_cast<std::size_t>(layer);
    return static_cast<int>(first[at + 1] - first[at]);
  }
};

template <int LANES, int ROWS>
void try_gather(Timer& timer, const Case& c, int blocks, const RowLists& lists, std::uint32_t* sink, Row& best) {
  constexpr int rows_of_block = ROWS * 256 / LANES;
  Row row = c.row("gather limit", std::to_string(ROWS) + " rows x " + std::to_string(blocks) + " blocks");
  row.times = timer(c.layers, [&](int layer, cudaStream_t stream) {
    const auto at = static_cast<std::size_t>(layer);
    const int count = lists.count(layer);
    const int grid = std::clamp((2 * count + rows_of_block - 1) / rows_of_block, 1, processors() * blocks);
    gather_rows<LANES, ROWS><<<grid, 256, 0, stream>>>(reinterpret_cast<const char*>(c.k[at]),
                                                       reinterpret_cast<const char*>(c.v[at]),
                                                       lists.rows.data() + lists.first[at], count, sink);
  });
  keep_better(best, row);
}

template <int LANES>
Row best_gather(Timer& timer, const Case& c, const RowLists& lists) {
  const DeviceArray<std::uint32_t> sink(1);
  Row best;
  try_gather<LANES, 1>(timer, c, 8, lists, sink.data(), best);
  try_gather<LANES, 2>(timer, c, 8, lists, sink.data(), best);
  try_gather<LANES, 4>(timer, c, 4, lists, sink.data(), best);
  try_gather<LANES, 4>(timer, c, 8, lists, sink.data(), best);
  try_gather<LANES, 8>(timer, c, 8, lists, sink.data(), best);
  return best;
}

Row gather_limit(Timer& timer, const Case& c, const RowLists& lists) {
  Row best = c.head_dim == 64    ? best_gather<8>(timer, c, lists)
             : c.head_dim == 128 ? best_gather<16>(timer, c, lists)
                                 : best_gather<32>(timer, c, lists);
  const double rows = static_cast<double>(lists.first.back()) / c.layers;
  best.share = rows / static_cast<double>(c.context * c.kv_heads * c.batch);
  best.bytes = 2.0 * rows * static_cast<double>(c.row_bytes());
  return best;
}

}  // namespace

Row stream_limit(Timer& timer, const Case& c) {
  const DeviceArray<std::uint32_t> sink(1);
  Row best;
  for (const int blocks : {4, 8, 16}) {
    Row row = c.row("stream limit", std::to_string(blocks) + " blocks");
    row.times = timer(c.layers, [&](int layer, cudaStream_t stream) {
      const auto at = static_cast<std::size_t>(layer);
      stream_rows<<<processors() * blocks, 256, 0, stream>>>(
          reinterpret_cast<const uint4*>(c.k[at]), reinterpret_cast<const uint4*>(c.v[at]), c.layer_elements() / 8, sink.data());
    });
    keep_better(best, row);
  }
  best.bytes = c.layer_bytes();
  return best;
}

Row gather_limit(Timer& timer, const Case& c, double share) {
  const int chosen = static_cast<int>(share * static_cast<double>(c.context) + 0.5);
  const std::int64_t count = std::int64_t{chosen} * c.kv_heads * c.batch, total = count * c.layers;
  RowLists lists{DeviceArray<std::int32_t>(static_cast<std::size_t>(total)), {}};
  for (int layer = 0; layer <= c.layers; ++layer) lists.first.push_back(layer * count);
  choose_rows<<<static_cast<unsigned>((total + 255) / 256), 256>>>(lists.rows.data(), total, chosen, c.context, c.kv_heads,
                                                                   c.batch);
  check(cudaDeviceSynchronize(), "choose_rows");
  return gather_limit(timer, c, lists);
}

Row gather_limit(Timer& timer, const Case& c, const std::vector<std::vector<std::int32_t>>& rows) {
  RowLists lists;
  std::vector<std::int32_t> all;
  for (const auto& layer : rows) {
    lists.first.push_back(static_cast<std::int64_t>(all.size()));
    all.insert(all.end(), layer.begin(), layer.end());
  }
  lists.first.push_back(static_cast<std::int64_t>(all.size()));
  lists.rows = DeviceArray<std::int32_t>(all.size());
  lists.rows.copy_from(all);
  return gather_limit(timer, c, lists);
}

Row launch_limit(Timer& timer) {
  const DeviceArray<std::uint32_t> sink(1);
  Row row;
  row.what = "launch limit", row.variant = "empty kernel", row.layers = 64;
  row.times = timer(64, [&](int, cudaStream_t stream) { nothing<<<processors(), 256, 0, stream>>>(sink.data()); });
  return row;
}

}  // namespace tactic::bench::gpu
