/* Decoding on a GPU through the C API: a prompt is clustered, then one captured CUDA graph makes every step of all layers while
 * the sequence grows; how much faster than dense attention that is on keys that come in topics, and how far the outputs are
 * apart. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tactic/tactic_cuda.h>

enum { LAYERS = 4, PROMPT = 32768, STEPS = 64, ROOM = PROMPT + STEPS, Q_HEADS = 32, KV_HEADS = 8, DIM = 128, TOPICS = 512 };
enum { NO_DEVICE = 77 };

static uint64_t state = 1;
static float noise(void) { /* about normal: a sum of four uniform numbers */
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    sum += (float)(state >> 40) / 16777216.0f - 0.5f;
  }
  return sum * 1.7320508f;
}
static uint16_t bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void must(tactic_status status) {
  if (status == TACTIC_OK) return;
  fprintf(stderr, "%s: %s\n", tactic_status_name(status), tactic_last_error());
  exit(1);
}
static void cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  exit(1);
}
static void* device_memory(size_t bytes) {
  void* memory = NULL;
  cuda(cudaMalloc(&memory, bytes));
  cuda(cudaMemset(memory, 0, bytes));
  return memory;
}

static float topics[TOPICS][KV_HEADS][DIM];

/* The cache of one layer, [tokens, heads, dim] of bf16; layers differ by a turn of the topics. */
static void fill_cache(uint16_t* k, uint16_t* v, int layer) {
  uint16_t(*row)[KV_HEADS][DIM] = malloc(sizeof(uint16_t[KV_HEADS][DIM]) * ROOM);
  for (int values = 0; values < 2; ++values) {
    for (int t = 0; t < ROOM; ++t)
      for (int h = 0; h < KV_HEADS; ++h)
        for (int i = 0; i < DIM; ++i)
          row[t][h][i] = bf16(values ? noise() : topics[(t * 7 + layer) % TOPICS][h][i] + 0.4f * noise());
    cuda(cudaMemcpy(values ? v : k, row, sizeof *row * ROOM, cudaMemcpyHostToDevice));
  }
  free(row);
}
static void fill_query(uint16_t* q, int step) {
  static uint16_t host[Q_HEADS][DIM];
  for (int h = 0; h < Q_HEADS; ++h)
    for (int i = 0; i < DIM; ++i)
      host[h][i] = bf16(1.2f * topics[step * 37 % TOPICS][h / (Q_HEADS / KV_HEADS)][i] + 0.3f * noise());
  cuda(cudaMemcpy(q, host, sizeof host, cudaMemcpyHostToDevice));
}

/* The steps of all layers as a graph; mass 0: as the options say, 1: dense. */
static cudaGraphExec_t capture(tactic_cuda_batch* batch, const tactic_cuda_kv* kv, tactic_cuda_step_args args, float mass,
                               int append, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  args.mass = mass;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  if (append) must(tactic_cuda_append(batch, stream));
  for (int l = 0; l < LAYERS; ++l) must(tactic_cuda_step(batch, l, &kv[l], &args, stream));
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiate(&replay, graph, 0));
  cuda(cudaGraphDestroy(graph));
  return replay;
}
static float replay(cudaGraphExec_t graph, cudaStream_t stream) { /* microseconds */
  static cudaEvent_t begin, end;
  if (begin == NULL) cuda(cudaEventCreate(&begin)), cuda(cudaEventCreate(&end));
  float ms = 0;
  cuda(cudaEventRecord(begin, stream));
  cuda(cudaGraphLaunch(graph, stream));
  cuda(cudaEventRecord(end, stream));
  cuda(cudaStreamSynchronize(stream));
  cuda(cudaEventElapsedTime(&ms, begin, end));
  return 1000 * ms;
}

int main(void) {
  if (tactic_cuda_check(0) != TACTIC_OK) {
    printf("%s\n", tactic_last_error());
    return NO_DEVICE;
  }
  for (int i = 0; i < TOPICS * KV_HEADS * DIM; ++i) (&topics[0][0][0])[i] = noise();
  cudaStream_t stream;
  cuda(cudaStreamCreate(&stream));

  tactic_sequence_config config;
  must(tactic_sequence_config_init(&config, sizeof config));
  config.layers = LAYERS;
  config.attention = (tactic_attention){Q_HEADS, KV_HEADS, DIM, DIM, 0, 0};
  config.rotary_layout = TACTIC_ROTARY_NONE;
  tactic_cuda_batch_config whole;
  must(tactic_cuda_batch_config_init(&whole, sizeof whole));
  whole.sequence = &config;
  whole.sequences = 1;
  whole.max_length = ROOM;
  tactic_cuda_batch* batch = NULL;
  must(tactic_cuda_batch_create(&whole, &batch));

  tactic_cuda_kv kv[LAYERS];
  const size_t row = sizeof(uint16_t[KV_HEADS][DIM]);
  for (int l = 0; l < LAYERS; ++l) {
    void* k = device_memory(row * ROOM);
    void* v = device_memory(row * ROOM);
    fill_cache(k, v, l);
    must(tactic_cuda_kv_init(&kv[l], sizeof kv[l]));
    kv[l].k = (tactic_cuda_rows){k, TACTIC_CUDA_BF16, DIM, (int64_t)row, DIM * 2, 0, 0, 0, 0};
    kv[l].v = (tactic_cuda_rows){v, TACTIC_CUDA_BF16, DIM, (int64_t)row, DIM * 2, 0, 0, 0, 0};
    kv[l].kv_heads = KV_HEADS;
  }

  /* Prefill: the prompt's last queries shape the clusters. */
  uint16_t* q = device_memory(sizeof(uint16_t[Q_HEADS][DIM]));
  for (int t = PROMPT - 64; t < PROMPT; ++t) {
    fill_query(q, t);
    for (int l = 0; l < LAYERS; ++l) must(tactic_cuda_observe_prompt(batch, l, 0, q, TACTIC_CUDA_BF16, 0, t, 1, NULL));
  }
  int32_t clustered = 0;
  size_t bytes = 0;
  must(tactic_cuda_set_length(batch, 0, PROMPT, NULL));
  must(tactic_cuda_cluster(batch, 0, LAYERS, kv, 0, PROMPT, &clustered, NULL));
  must(tactic_cuda_settle(batch, NULL));
  must(tactic_cuda_batch_bytes(batch, &bytes));
  printf("clustered %d tokens in %d layers; %.1f MB beside %.1f MB of K and V\n", clustered, LAYERS, 1e-6 * (double)bytes,
         2e-6 * LAYERS * (double)(row * ROOM));

  tactic_cuda_step_args args;
  must(tactic_cuda_step_args_init(&args, sizeof args));
  const size_t out_size = Q_HEADS * DIM;
  args.q = q;
  args.out = device_memory(out_size * sizeof(float));
  args.out_dtype = TACTIC_CUDA_F32;
  must(tactic_cuda_step_bytes(batch, &kv[0], &args, &args.scratch_bytes));
  args.scratch = device_memory(args.scratch_bytes);

  /* Decode: the same graph for every step. (Its K and V are in the cache already; an engine would append them.) */
  const cudaGraphExec_t sparse = capture(batch, kv, args, 0, 1, stream), dense = capture(batch, kv, args, 1, 0, stream);
  static float outputs[2][Q_HEADS * DIM];
  double difference = 0, size = 0, sparse_us = 0, dense_us = 0;
  for (int step = 0; step < STEPS; ++step) {
    fill_query(q, step);
    sparse_us += replay(sparse, stream) / STEPS;
    cuda(cudaMemcpy(outputs[0], args.out, sizeof outputs[0], cudaMemcpyDeviceToHost)); /* of the last layer */
    dense_us += replay(dense, stream) / STEPS;
    cuda(cudaMemcpy(outputs[1], args.out, sizeof outputs[1], cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < out_size; ++i) {
      difference += pow(outputs[0][i] - outputs[1][i], 2);
      size += pow(outputs[1][i], 2);
    }
  }
  must(tactic_cuda_settle(batch, stream));
  difference = sqrt(difference / size);
  printf("a step of %d layers: %.0f us, dense %.0f us; output differs from dense by %.1f%% of its norm\n", LAYERS, sparse_us,
         dense_us, 100 * difference);
  tactic_cuda_batch_destroy(batch);
  return difference < 0.34 ? 0 : 1; /* V is independent noise: leaving out a tenth of the mass costs at most sqrt(.1 / .9) */
}
