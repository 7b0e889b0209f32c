// The decoder step: GEMMs by cuBLAS, everything between them here. Activations bf16 [batch, ...], weights bf16 [rows, columns].
#include <cuda_bf16.h>

#include <stdexcept>
#include <string>

#include "decoder.h"

namespace tactic::bench::gpu {
namespace {

void check_blas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string(what) + ": cuBLAS status " + std::to_string(status));
}

__device__ float load(const std::uint16_t* x, std::int64_t i) { return __bfloat162float(__ushort_as_bfloat16(x[i])); }
__device__ std::uint16_t pack(float x) { return __bfloat16_as_ushort(__float2bfloat16(x)); }

// Uniform of deviation `deviation`.
__global__ void random_weights(std::uint16_t* out, std::size_t count, float deviation, std::uint64_t seed) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count; i += step)
    out[i] = pack((uniform(seed, i) - 0.5f) * 3.4641f * deviation);
}

// The token's embedding: a row of the output head's weights, which the two share. grid batch.
__global__ void embed(const std::uint16_t* table, const std::int32_t* token, int hidden, std::uint16_t* out) {
  for (int i = threadIdx.x; i < hidden; i += blockDim.x)
    out[blockIdx.x * hidden + i] = pack(load(table, static_cast<std::int64_t>(token[blockIdx.x]) * hidden + i) * 64.0f);
}

// x / root mean square(x); the learned factor is one. grid batch, block 1024.
__global__ void rms_norm(const std::uint16_t* in, int n, std::uint16_t* out) {
  __shared__ float sums[32];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * n;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += load(in, row + i) * load(in, row + i);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += sums[i];
  const float factor = rsqrtf(sum / static_cast<float>(n) + 1e-5f);
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[row + i] = pack(load(in, row + i) * factor);
}

// Turns q and k of the new token by its position and appends k and v to the cache. grid (q_heads + 2 kv_heads, batch), block d
// / 2.
__global__ void rotate_append(std::uint16_t* qkv, int q_heads, int kv_heads, const std::int32_t* lengths, std::uint16_t* k,
                              std::uint16_t* v, std::int64_t capacity) {
  const int half = blockDim.x, d = 2 * half, head = blockIdx.x, s = blockIdx.y, i = threadIdx.x;
  std::uint16_t* row = qkv + (static_cast<std::int64_t>(s) * gridDim.x + head) * d;
  const std::int64_t position = lengths[s] - 1;
  float a = load(row, i), b = load(row, i + half);
  if (head < q_heads + kv_heads) {
    const float angle = static_cast<float>(position) * exp2f(-static_cast<float>(i) / half * 18.9315686f);  // base 500000
    const float cosine = cosf(angle), sine = sinf(angle);
    const float turned = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = turned;
  }
  if (head < q_heads) {
    row[i] = pack(a), row[i + half] = pack(b);
    return;
  }
  const int kv_head = (head - q_heads) % kv_heads;
  std::uint16_t* to = (head < q_heads + kv_heads ? k : v) + ((s * capacity + position) * kv_heads + kv_head) * d;
  to[i] = pack(a), to[i + half] = pack(b);
}

// silu(gate) * up. in [batch, 2, inner].
__global__ void swiglu(const std::uint16_t* in, int inner, int batch, std::uint16_t* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= inner * batch) return;
  const std::int64_t gate = static_cast<std::int64_t>(i / inner) * 2 * inner + i % inner;
  const float x = load(in, gate);
  out[i] = pack(x / (1 + __expf(-x)) * load(in, gate + inner));
}

// Greedy: the first of the largest logits. grid batch, block 1024.
__global__ void choose_token(const std::uint16_t* logits, int n, std::int32_t* token) {
  __shared__ float top_of[32];
  __shared__ int at_of[32];
  float top = -INFINITY;
  int at = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float x = load(logits, static_cast<std::int64_t>(blockIdx.x) * n + i);
    if (x > top) top = x, at = i;
  }
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, top, step);
    const int other_at = __shfl_xor_sync(~0u, at, step);
    if (other > top || (other == top && other_at < at)) top = other, at = other_at;
  }
  if (threadIdx.x % 32 == 0) top_of[threadIdx.x / 32] = top, at_of[threadIdx.x / 32] = at;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < 32; ++w) {
    if (top_of[w] > top) top = top_of[w], at = at_of[w];
  }
  token[blockIdx.x] = at;
}

__global__ void grow(std::int32_t* lengths, int batch) {
  if (static_cast<int>(threadIdx.x) < batch) ++lengths[threadIdx.x];
}

std::size_t layer_weights(const DecoderShape& s) {
  return static_cast<std::size_t>(s.hidden) *
         (static_cast<std::size_t>(s.qkv_rows()) + static_cast<std::size_t>(s.q_heads * s.head_dim) +
          3 * static_cast<std::size_t>(s.inner));
}

}  // namespace

Decoder::Decoder(const DecoderShape& shape, int batch)
    : shape_(shape),
      batch_(batch),
      weights_(layer_weights(shape) * static_cast<std::size_t>(shape.layers) +
               static_cast<std::size_t>(shape.vocabulary) * static_cast<std::size_t>(shape.hidden)) {
  const auto b = static_cast<std::size_t>(batch);
  const auto activations = [&](int width) { return DeviceArray<std::uint16_t>(b * static_cast<std::size_t>(width)); };
  stream_ = activations(shape.hidden), normed_ = activations(shape.hidden), qkv_ = activations(shape.qkv_rows());
  attended_ = activations(shape.q_heads * shape.head_dim), gate_up_ = activations(2 * shape.inner),
  inner_ = activations(shape.inner);
  logits_ = activations(shape.vocabulary);
  token_ = DeviceArray<std::int32_t>(b);
  workspace_ = DeviceArray<std::byte>(32u << 20);
  check(cudaMemset(token_.data(), 0, b * sizeof(std::int32_t)), "cudaMemset");
  check(cudaMemset(attended_.data(), 0, attended_.size() * 2), "cudaMemset");
  random_weights<<<4096, 256>>>(weights_.data(), weights_.size(), 1.0f / 64.0f, 5);
  check(cudaDeviceSynchronize(), "random weights");
  check_blas(cublasCreate(&blas_), "cublasCreate");
  check_blas(cublasSetWorkspace(blas_, workspace_.data(), workspace_.size()), "cublasSetWorkspace");
}

Decoder::~Decoder() { cublasDestroy(blas_); }

double Decoder::weight_bytes() const { return 2.0 * static_cast<double>(weights_.size()); }

void Decoder::multiply(const std::uint16_t* weights, const std::uint16_t* in, std::uint16_t* out, int rows, int columns, bool add,
                       cudaStream_t stream) {
  check_blas(cublasSetStream(blas_, stream), "cublasSetStream");
  check_blas(cublasSetWorkspace(blas_, workspace_.data(), workspace_.size()), "cublasSetWorkspace");
  const float one = 1, into = add ? 1.0f : 0.0f;
  check_blas(cublasGemmEx(blas_, CUBLAS_OP_T, CUBLAS_OP_N, rows, batch_, columns, &one, weights, CUDA_R_16BF, columns, in,
                          CUDA_R_16BF, columns, &into, out, CUDA_R_16BF, rows, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
             "cublasGemmEx");
}

void Decoder::step(const std::vector<Cache>& caches, std::int32_t* lengths, const Attention& attention, cudaStream_t stream) {
  const DecoderShape& s = shape_;
  const auto batch = static_cast<unsigned>(batch_);
  const std::uint16_t* head = weights_.data() + layer_weights(s) * static_cast<std::size_t>(s.layers);
  const DeviceOutput output{attended_.data(), DeviceType::bf16, std::int64_t{2} * s.q_heads * s.head_dim, nullptr};
  grow<<<1, 1024, 0, stream>>>(lengths, batch_);
  embed<<<batch, 256, 0, stream>>>(head, token_.data(), s.hidden, stream_.data());
  const std::uint16_t* w = weights_.data();
  const auto next = [&](int rows, int columns) {
    const std::uint16_t* at = w;
    w += static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
    return at;
  };
  for (int layer = 0; layer < s.layers; ++layer) {
    rms_norm<<<batch, 1024, 0, stream>>>(stream_.data(), s.hidden, normed_.data());
    multiply(next(s.qkv_rows(), s.hidden), normed_.data(), qkv_.data(), s.qkv_rows(), s.hidden, false, stream);
    const Cache& cache = caches[static_cast<std::size_t>(layer)];
    rotate_append<<<dim3(static_cast<unsigned>(s.q_heads + 2 * s.kv_heads), batch), static_cast<unsigned>(s.head_dim / 2), 0,
                    stream>>>(qkv_.data(), s.q_heads, s.kv_heads, lengths, cache.k, cache.v, cache.capacity);
    if (attention) attention(layer, output, stream);
    multiply(next(s.hidden, s.q_heads * s.head_dim), attended_.data(), stream_.data(), s.hidden, s.q_heads * s.head_dim, true,
             stream);
    rms_norm<<<batch, 1024, 0, stream>>>(stream_.data(), s.hidden, normed_.data());
    multiply(next(2 * s.inner, s.hidden), normed_.data(), gate_up_.data(), 2 * s.inner, s.hidden, false, stream);
    swiglu<<<(static_cast<unsigned>(s.inner) * batch + 255) / 256, 256, 0, stream>>>(gate_up_.data(), s.inner, batch_,
                                                                                     inner_.data());
    multiply(next(s.hidden, s.inner), inner_.data(), stream_.data(), s.hidden, s.inner, true, stream);
  }
  rms_norm<<<batch, 1024, 0, stream>>>(stream_.data(), s.hidden, normed_.data());
  multiply(head, normed_.data(), logits_.data(), s.vocabulary, s.hidden, false, stream);
  choose_token<<<batch, 1024, 0, stream>>>(logits_.data(), s.vocabulary, token_.data());
  check(cudaGetLastError(), "decoder step");
}

}  // namespace tactic::bench::gpu
