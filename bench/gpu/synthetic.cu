// The model of apps/tactic/synthetic.cpp on the device: one thread block tells one head's story, one thread a direction's.
//
// A key is  mean + sum_j dev_j u_j z_j(t): u orthonormal, dev_j^2 ~ (j+1)^-slope, z_j a part that the token's kind decides plus
// three first-order autoregressions. A query leans to a taste of its KV head, one of its own and the newest tokens' mean.
#include <cuda_bf16.h>

#include <cmath>
#include <random>

#include "cluster/cluster.h"
#include "synthetic.h"

namespace tactic::bench::gpu {
namespace {

constexpr int kKinds = 4096;           // drawn with Zipf's law 1 / (kind + 3)
constexpr int kRecent = 64;            // tokens that the queries lean to
constexpr float kTowardRecent = 1.8f;  // as in apps/tactic/synthetic.cpp: found by trial
constexpr int kTile = 32;              // tokens that a block turns into keys together
constexpr int kSinkTrials = 8;         // queries that the sink is fitted with

// What the kernels know of one layer's KV head; shared by the sequences.
struct Models {
  const float* basis = nullptr;            // [layers, kv_heads, d, d] dev_j u_j, row j
  const float* deviation = nullptr;        // [d]
  const float* mean = nullptr;             // [layers, kv_heads, d]
  const float* logit_deviation = nullptr;  // [layers, kv_heads]
};

struct Story {
  float kind_part, parts[3], keep[3];
  float toward_recent;
  float sink_mass;
  std::uint64_t seed;
};

__device__ float normal(std::uint64_t seed, std::uint64_t index) {
  const float u = uniform(seed, 2 * index), v = uniform(seed, 2 * index + 1);
  return sqrtf(-2.0f * __logf(u + 1e-8f)) * __cosf(6.2831853f * v);
}

// Inverse of the distribution function of 1 / (kind + 3), the sum taken as an integral.
__device__ int draw_kind(float u) {
  const float top = logf((kKinds + 2.5f) / 2.5f);
  return min(kKinds - 1, static_cast<int>(2.5f * __expf(u * top) - 2.5f));
}

// grid (kv_heads, batch, layers), block d. k, v: [layers] pointers. recent [layers, batch, kv_heads, d]: mean z of the newest.
__global__ void tell(std::uint16_t* const* k, std::uint16_t* const* v, Models models, Story story, std::int64_t context,
                     float* recent) {
  extern __shared__ float shared[];
  const int d = blockDim.x, j = threadIdx.x, head = blockIdx.x, heads = gridDim.x, sequence = blockIdx.y, layer = blockIdx.z;
  float* basis = shared;         // [d, d]
  float* tile = shared + d * d;  // [kTile, d]
  __shared__ int kinds[kTile];
  const std::int64_t model = static_cast<std::int64_t>(layer) * heads + head;
  const std::int64_t teller = (static_cast<std::int64_t>(layer) * gridDim.y + sequence) * heads + head;
  for (int i = 0; i < d; ++i) basis[i * d + j] = models.basis[model * d * d + i * d + j];
  const float mean = models.mean[model * d + j];
  const std::uint64_t own = story.seed + 7919 * static_cast<std::uint64_t>(teller + 1);  // this story's random numbers
  const std::uint64_t vocabulary = story.seed + 104729 * static_cast<std::uint64_t>(model + 1);
  float state[3];
  for (int s = 0; s < 3; ++s) state[s] = normal(own + 11 + s, j);
  float newest = 0;
  std::uint16_t* const my_k = k[layer];
  std::uint16_t* const my_v = v[layer];
  for (std::int64_t first = 0; first < context; first += kTile) {
    __syncthreads();
    if (j < kTile) kinds[j] = draw_kind(uniform(own + 1, first + j));
    __syncthreads();
    for (int t = 0; t < kTile; ++t) {
      const std::uint64_t at = static_cast<std::uint64_t>(first + t) * d + j;
      float z = sqrtf(story.kind_part) * normal(vocabulary, static_cast<std::uint64_t>(kinds[t]) * d + j);
      for (int s = 0; s < 3; ++s) {
        state[s] = story.keep[s] * state[s] + sqrtf(1 - story.keep[s] * story.keep[s]) * normal(own + 2 + s, at);
        z += sqrtf(story.parts[s]) * state[s];
      }
      tile[t * d + j] = z;
      if (first + t + kRecent >= context && first + t < context) newest += z / kRecent;
    }
    __syncthreads();
    float key[kTile];
#pragma unroll
    for (int t = 0; t < kTile; ++t) key[t] = mean;
    for (int i = 0; i < d; i += 4) {
      const float b0 = basis[i * d + j], b1 = basis[(i + 1) * d + j], b2 = basis[(i + 2) * d + j], b3 = basis[(i + 3) * d + j];
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
        const float4 z = *reinterpret_cast<const float4*>(tile + t * d + i);
        key[t] += z.x * b0 + z.y * b1 + z.z * b2 + z.w * b3;
      }
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (first + t >= context) break;
      const std::int64_t at = ((sequence * context + first + t) * heads + head) * d + j;
      my_k[at] = __bfloat16_as_ushort(__float2bfloat16(key[t]));
      my_v[at] = __bfloat16_as_ushort(__float2bfloat16(normal(own + 9, static_cast<std::uint64_t>(first + t) * d + j)));
    }
  }
  recent[teller * d + j] = newest;
}

__device__ float block_sum(float x) {
  __shared__ float sums[32];
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) total += sums[i];
  return total;
}

// grid (q_heads, kQueryRows, layers * batch), block d. rows [layers * batch, kQueryRows, q_heads, d], steps: the last row in
// bf16.
__global__ void ask(Models models, Story story, const float* recent, int kv_heads, int batch, float* rows, std::uint16_t* steps) {
  extern __shared__ float along[];  // [d]
  const int d = blockDim.x, j = threadIdx.x, q_head = blockIdx.x, q_heads = gridDim.x, row = blockIdx.y, teller = blockIdx.z;
  const int head = q_head / (q_heads / kv_heads), layer = teller / batch;
  const std::int64_t model = static_cast<std::int64_t>(layer) * kv_heads + head;
  const std::uint64_t tastes = story.seed + 1299709 * static_cast<std::uint64_t>(layer + 1);
  const float w =
      0.7f * normal(tastes, head * d + j) + 0.6f * normal(tastes + 1, q_head * d + j) +
      0.5f * normal(tastes + 2, ((static_cast<std::uint64_t>(teller) * kQueryRows + row) * q_heads + q_head) * d + j) +
      story.toward_recent * recent[(static_cast<std::int64_t>(teller) * kv_heads + head) * d + j];
  const float deviation = models.deviation[j];
  const float variance = block_sum(w * w * deviation * deviation);
  along[j] = w / deviation;
  __syncthreads();
  float q = 0;
  for (int i = 0; i < d; ++i) q += along[i] * models.basis[model * d * d + i * d + j];
  q *= models.logit_deviation[model] * sqrtf(static_cast<float>(d) / variance);
  rows[((static_cast<std::int64_t>(teller) * kQueryRows + row) * q_heads + q_head) * d + j] = q;
  if (row == kQueryRows - 1)
    steps[(static_cast<std::int64_t>(teller) * q_heads + q_head) * d + j] = __bfloat16_as_ushort(__float2bfloat16(q));
}

// Trial i of a head: row i * kQueryRows / kSinkTrials, query head i % group.
__device__ const float* trial_query(const float* rows, int teller, int head, int trial, int q_heads, int group, int d) {
  const int row = trial * (kQueryRows - 1) / kSinkTrials, q_head = head * group + trial % group;
  return rows + ((static_cast<std::int64_t>(teller) * kQueryRows + row) * q_heads + q_head) * d;
}

// sums [layers * batch, kv_heads, kSinkTrials] += sum of exp(logit) over all tokens but the first. A warp takes a token at a
// time. grid (blocks, kv_heads, layers * batch). Logits stay below 60: no maximum is needed.
__global__ void weigh(std::uint16_t* const* k, const float* rows, std::int64_t context, int batch, int group, int d,
                      float* sums) {
  const int lane = threadIdx.x % 32, head = blockIdx.y, heads = gridDim.y, teller = blockIdx.z;
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, warps = gridDim.x * blockDim.x / 32;
  const std::uint16_t* keys = k[teller / batch] + (static_cast<std::int64_t>(teller % batch) * context * heads + head) * d;
  float q[kSinkTrials][8], total[kSinkTrials] = {};
  for (int i = 0; i < kSinkTrials; ++i) {
    const float* from = trial_query(rows, teller, head, i, heads * group, group, d);
    for (int e = 0; e * 32 < d; ++e) q[i][e] = from[e * 32 + lane];
  }
  for (std::int64_t t = warp + 1; t < context; t += warps) {
    float logit[kSinkTrials] = {};
    for (int e = 0; e * 32 < d; ++e) {
      const float key = __bfloat162float(__ushort_as_bfloat16(keys[t * heads * d + e * 32 + lane]));
#pragma unroll
      for (int i = 0; i < kSinkTrials; ++i) logit[i] += q[i][e] * key;
    }
#pragma unroll
    for (int i = 0; i < kSinkTrials; ++i) {
      for (int step = 16; step > 0; step /= 2) logit[i] += __shfl_xor_sync(~0u, logit[i], step);
      total[i] += __expf(logit[i] * rsqrtf(static_cast<float>(d)));
    }
  }
  if (lane < kSinkTrials) {
    float mine = 0;
    for (int i = 0; i < kSinkTrials; ++i) mine = lane == i ? total[i] : mine;
    atomicAdd(sums + (static_cast<std::int64_t>(teller) * heads + head) * kSinkTrials + lane, mine);
  }
}

// The first token's key lies along the mean query, as long as gives it the wanted mass. grid (kv_heads, layers * batch), block d.
__global__ void place_sink(std::uint16_t* const* k, const float* rows, const float* sums, std::int64_t context, int batch,
                           int group, float wanted) {
  const int d = blockDim.x, j = threadIdx.x, head = blockIdx.x, heads = gridDim.x, teller = blockIdx.y;
  float mean = 0;
  for (int row = 0; row < kQueryRows; ++row) {
    for (int g = 0; g < group; ++g)
      mean += rows[((static_cast<std::int64_t>(teller) * kQueryRows + row) * heads * group + head * group + g) * d + j];
  }
  const float direction = mean * rsqrtf(block_sum(mean * mean));
  float part[kSinkTrials], others[kSinkTrials];
  for (int i = 0; i < kSinkTrials; ++i) {
    part[i] =
        block_sum(direction * trial_query(rows, teller, head, i, heads * group, group, d)[j]) * rsqrtf(static_cast<float>(d));
    others[i] = logf(sums[(static_cast<std::int64_t>(teller) * heads + head) * kSinkTrials + i]);
  }
  float low = 0, high = 1000;
  for (int round = 0; round < 40; ++round) {
    const float length = (low + high) / 2;
    float mass = 0;
    for (int i = 0; i < kSinkTrials; ++i) mass += 1 / (1 + expf(others[i] - length * part[i])) / kSinkTrials;
    (mass < wanted ? low : high) = length;
  }
  k[teller / batch][(static_cast<std::int64_t>(teller % batch) * context * heads + head) * d + j] =
      __bfloat16_as_ushort(__float2bfloat16(low * direction));
}

// [d, d] orthonormal rows by Gram-Schmidt, row j times deviation[j].
void append_basis(int d, const std::vector<float>& deviation, std::mt19937_64& random, std::vector<float>& to) {
  std::normal_distribution<float> distribution;
  const auto n = static_cast<std::size_t>(d);
  std::vector<float> rows(n * n);
  for (std::size_t r = 0; r < n; ++r) {
    float* row = rows.data() + r * n;
    for (std::size_t i = 0; i < n; ++i) row[i] = distribution(random);
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t o = 0; o < r; ++o) {
        float along = 0;
        for (std::size_t i = 0; i < n; ++i) along += row[i] * rows[o * n + i];
        for (std::size_t i = 0; i < n; ++i) row[i] -= along * rows[o * n + i];
      }
    }
    float square = 0;
    for (std::size_t i = 0; i < n; ++i) square += row[i] * row[i];
    for (std::size_t i = 0; i < n; ++i) row[i] /= std::sqrt(square);
  }
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t i = 0; i < n; ++i) to.push_back(deviation[r] * rows[r * n + i]);
  }
}

struct ModelArrays {
  DeviceArray<float> basis, deviation, mean, logit_deviation;
  Models view() const { return {basis.data(), deviation.data(), mean.data(), logit_deviation.data()}; }
};

DeviceArray<float> send(const std::vector<float>& host) {
  DeviceArray<float> device(host.size());
  device.copy_from(host);
  return device;
}

constexpr int kBases = 8;  // different ones; layers take turns

ModelArrays make_models(const Case& c, const program::KeyStatistics& statistics, std::uint64_t seed) {
  const auto d = static_cast<std::size_t>(c.head_dim);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normals;
  std::vector<float> deviation, bases, basis, mean, logit;
  double total = 0;
  for (int j = 0; j < c.head_dim; ++j) total += std::pow(j + 1.0, -statistics.spectrum_slope);
  for (int j = 0; j < c.head_dim; ++j)
    deviation.push_back(static_cast<float>(std::sqrt(c.head_dim * std::pow(j + 1.0, -statistics.spectrum_slope) / total)));
  for (int i = 0; i < kBases; ++i) append_basis(c.head_dim, deviation, random, bases);
  for (int i = 0; i < c.layers * c.kv_heads; ++i) {
    const auto from = bases.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i % kBases) * d * d);
    basis.insert(basis.end(), from, from + static_cast<std::ptrdiff_t>(d * d));
    std::vector<float> offset(d);
    float square = 0;
    for (float& x : offset) x = normals(random), square += x * x;
    for (const float x : offset)
      mean.push_back(x / std::sqrt(square) * static_cast<float>(statistics.offset * std::sqrt(c.head_dim)));
    logit.push_back(static_cast<float>(statistics.logit_deviation * std::exp(statistics.logit_spread * normals(random))));
  }
  return {send(basis), send(deviation), send(mean), send(logit)};
}

Story make_story(const program::KeyStatistics& s, std::uint64_t seed) {
  return {static_cast<float>(s.kind_part),
          {static_cast<float>(s.phrase_part), static_cast<float>(s.passage_part), static_cast<float>(s.topic_part)},
          {std::exp(-1 / 4.0f), std::exp(-1 / 30.0f), std::exp(-1 / 800.0f)},
          kTowardRecent * static_cast<float>(s.recent_mass),
          static_cast<float>(s.sink_mass),
          seed};
}

}  // namespace

SyntheticQueries fill_synthetic(const Case& c, const program::KeyStatistics& statistics, std::uint64_t seed) {
  const ModelArrays arrays = make_models(c, statistics, seed);
  const Models models = arrays.view();
  const Story story = make_story(statistics, seed);
  const auto d = static_cast<unsigned>(c.head_dim), kv_heads = static_cast<unsigned>(c.kv_heads),
             layers = static_cast<unsigned>(c.layers);
  const auto batch = static_cast<unsigned>(c.batch);
  DeviceArray<std::uint16_t*> k(c.k.size()), v(c.v.size());
  k.copy_from(c.k);
  v.copy_from(c.v);
  const DeviceArray<float> recent(static_cast<std::size_t>(layers) * batch * kv_heads * d);
  const std::size_t shared = (d * d + kTile * d) * sizeof(float);
  check(cudaFuncSetAttribute(tell, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), "shared memory");
  tell<<<dim3(kv_heads, batch, layers), d, shared>>>(k.data(), v.data(), models, story, c.context, recent.data());
  check(cudaGetLastError(), "tell");
  const std::size_t step_elements = static_cast<std::size_t>(layers) * batch * static_cast<std::size_t>(c.q_heads) * d;
  SyntheticQueries queries{DeviceArray<float>(step_elements * kQueryRows), DeviceArray<std::uint16_t>(step_elements)};
  ask<<<dim3(static_cast<unsigned>(c.q_heads), kQueryRows, layers * batch), d, d * sizeof(float)>>>(
      models, story, recent.data(), c.kv_heads, c.batch, queries.rows.data(), queries.steps.data());
  check(cudaGetLastError(), "ask");
  const DeviceArray<float> sums(static_cast<std::size_t>(layers) * batch * kv_heads * kSinkTrials);
  check(cudaMemset(sums.data(), 0, sums.size() * sizeof(float)), "cudaMemset");
  weigh<<<dim3(16, kv_heads, layers * batch), 256>>>(k.data(), queries.rows.data(), c.context, c.batch, c.group(), c.head_dim,
                                                     sums.data());
  check(cudaGetLastError(), "weigh");
  place_sink<<<dim3(kv_heads, layers * batch), d>>>(k.data(), queries.rows.data(), sums.data(), c.context, c.batch, c.group(),
                                                    story.sink_mass);
  check(cudaDeviceSynchronize(), "synthetic keys");
  return queries;
}

DeviceArray<float> query_metrics(const Case& c, const SyntheticQueries& queries, float shrinkage) {
  const std::vector<float> rows = queries.rows.to_host();
  const auto row = static_cast<std::int64_t>(c.q_heads) * c.head_dim;
  std::vector<float> factors;
  Rotary rotary;
  rotary.layout = Rotary::Layout::none;  // these keys are not turned
  for (int layer = 0; layer < c.layers; ++layer) {
    const float* first = rows.data() + std::int64_t{layer} * c.batch * kQueryRows * row;
    for (int head = 0; head < c.kv_heads; ++head) {
      QueryMoment moment(c.head_dim);
      moment.add(first + std::int64_t{head} * c.group() * c.head_dim, kQueryRows, c.group(), row, c.head_dim);
      const MetricSpace metric = make_metric(Metric::query, moment, rotary, shrinkage);
      factors.insert(factors.end(), metric.factor.begin(), metric.factor.end());
    }
  }
  return send(factors);
}

}  // namespace tactic::bench::gpu
