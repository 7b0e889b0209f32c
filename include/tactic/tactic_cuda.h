/* Tactic on CUDA devices: a batch of sequences whose keys are clustered, chosen and attended on the device. The C API of a
 * libtactic that was built with CUDA; without it every function answers TACTIC_UNSUPPORTED.
 *
 * The way of the data, for a batch of S sequences:
 *   prefill   the engine writes K and V of a prompt into its cache; tactic_cuda_observe_prompt() with the prompt's last queries,
 *             tactic_cuda_set_length(), tactic_cuda_cluster()
 *   decode    tactic_cuda_append() once a step, then tactic_cuda_step() for every layer: launches on the caller's stream, no
 *             allocation, no wait, no read by the host. All of it can be captured in a CUDA graph and replayed while lengths,
 *             block tables, budgets and clusters change
 *   between   tactic_cuda_due() tells (from lengths that the engine knows) when generated tokens are worth clusters;
 *             tactic_cuda_settle() waits and reports what went wrong on the device
 *
 * K and V stay the caller's memory, pages included. What tactic.h says of errors, growth, threads and ownership holds here.
 * Device memory that a captured graph works on (the batch, scratch, caches, lengths) must live as long as the graph.
 */
#ifndef TACTIC_TACTIC_CUDA_H
#define TACTIC_TACTIC_CUDA_H

#include "tactic/tactic.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
typedef struct CUstream_st* tactic_cuda_stream; /* cudaStream_t; null: the default stream */

typedef enum tactic_cuda_dtype {
  TACTIC_CUDA_F32 = 0,
  TACTIC_CUDA_F16 = 1,
  TACTIC_CUDA_BF16 = 2,
  TACTIC_CUDA_FP8_E4M3 = 3 /* K and V only */
} tactic_cuda_dtype;

/* TACTIC_OK when the device can run this library; else TACTIC_UNSUPPORTED and a message that says what is missing: CUDA in this
 * build, a GPU, a newer driver, an architecture of sm_80 or newer. Makes the device current for the calling thread. */
TACTIC_API tactic_status tactic_cuda_check(int32_t device);

/* ---- views of K and V on the device ---------------------------------------------------------------------------------- */

/* Rows of K or of V. The row of (sequence s, token t, KV head h), `dim` contiguous elements, begins at
 *   data + s * sequence_stride + t * token_stride + h * head_stride                                       without a block table
 *   data + block_table[s][t / block_size] * block_stride + t % block_size * token_stride + h * head_stride  with one
 * Strides in bytes, multiples of 16; data aligned to 16 bytes. */
typedef struct tactic_cuda_rows {
  const void* data;
  int32_t dtype; /* tactic_cuda_dtype */
  int32_t dim;
  int64_t token_stride;
  int64_t head_stride;     /* not read when kv_heads is 1 */
  int64_t block_stride;    /* not read without a block table */
  int64_t sequence_stride; /* not read with one, nor for one sequence */
  float scale;             /* of fp8: an element is worth scale times what is stored; 0: 1 */
  int32_t reserved;        /* 0 */
} tactic_cuda_rows;

/* K and V of all sequences of a batch in one layer. */
typedef struct tactic_cuda_kv {
  size_t size;
  tactic_cuda_rows k;
  tactic_cuda_rows v;
  int32_t kv_heads;
  int32_t block_size;         /* tokens a block holds; not read without a block table */
  const int32_t* block_table; /* device [S, max_blocks] block ids, or null */
  int32_t max_blocks;
  int32_t block_count;    /* of the cache: tokens of other block ids are left out and reported. 0: 64 GiB of blocks */
  const int32_t* lengths; /* device [S] tokens of each sequence; null: the batch's own (tactic_cuda_lengths()) */
} tactic_cuda_kv;

TACTIC_API tactic_status tactic_cuda_kv_init(tactic_cuda_kv* kv, size_t size);

/* ---- batches ---------------------------------------------------------------------------------------------------------- */

typedef struct tactic_cuda_batch tactic_cuda_batch;

/* Like tactic_options_init(), with what the device leaves out switched off: verify, tail_factor and promise, which
 * tactic_cuda_batch_create() refuses with TACTIC_UNSUPPORTED (docs/gpu.md says what that costs). tail_clusters is 0 or not 0
 * there with goal error: what is worth its mean V is represented, without a limit. */
TACTIC_API tactic_status tactic_cuda_options_init(tactic_options* options, size_t size);

/* On the current CUDA device. sequence: layers, attention, rotary embedding and options of every sequence
 * (tactic_sequence_config_init()); its options null: those of tactic_cuda_options_init(). */
typedef struct tactic_cuda_batch_config {
  size_t size;
  const tactic_sequence_config* sequence;
  int32_t sequences;  /* 1 .. 4096 */
  int32_t max_length; /* tokens that a sequence can reach, 1 .. 2^28 */
} tactic_cuda_batch_config;

TACTIC_API tactic_status tactic_cuda_batch_config_init(tactic_cuda_batch_config* config, size_t size);

/* Allocates the index of all layers for all sequences: about 7% of the bytes of K and V in bf16 at max_length.
 * *batch is the new batch, or null on failure (message: tactic_last_error()). */
TACTIC_API tactic_status tactic_cuda_batch_create(const tactic_cuda_batch_config* config, tactic_cuda_batch** batch);
TACTIC_API void tactic_cuda_batch_destroy(tactic_cuda_batch* batch);
TACTIC_API const char* tactic_cuda_batch_error(const tactic_cuda_batch* batch);
/* Device memory of the batch. */
TACTIC_API tactic_status tactic_cuda_batch_bytes(tactic_cuda_batch* batch, size_t* bytes);
/* *lengths: device [S], the batch's count of tokens. */
TACTIC_API tactic_status tactic_cuda_lengths(tactic_cuda_batch* batch, int32_t** lengths);

/* In stream order. A sequence is emptied; holds `tokens` tokens, whose K and V are in the cache; rolls back to `tokens`. */
TACTIC_API tactic_status tactic_cuda_clear(tactic_cuda_batch* batch, int32_t sequence, tactic_cuda_stream stream);
TACTIC_API tactic_status tactic_cuda_set_length(tactic_cuda_batch* batch, int32_t sequence, int32_t tokens,
                                                tactic_cuda_stream stream);
TACTIC_API tactic_status tactic_cuda_truncate(tactic_cuda_batch* batch, int32_t sequence, int32_t tokens,
                                              tactic_cuda_stream stream);

/* Queries of the prompt's tokens first .. first + tokens - 1 in a layer: device q [tokens, q_heads, head_dim], post-RoPE,
 * unscaled, dtype f32, f16 or bf16; token_stride in elements, 0: contiguous. The last 128 tokens shape the metric. */
TACTIC_API tactic_status tactic_cuda_observe_prompt(tactic_cuda_batch* batch, int32_t layer, int32_t sequence, const void* q,
                                                    int32_t dtype, int64_t token_stride, int32_t first, int32_t tokens,
                                                    tactic_cuda_stream stream);

/* *due: how many tokens tactic_cuda_cluster() would cluster in a layer of a sequence that holds `tokens` tokens; 0: nothing. */
TACTIC_API tactic_status tactic_cuda_due(tactic_cuda_batch* batch, int32_t layer, int32_t sequence, int32_t tokens, int32_t* due);
/* Clusters what is due in layers first_layer .. first_layer + layers - 1 of a sequence that holds `tokens` tokens; kv [layers],
 * one view a layer. Several layers at once fill the device better. Captured graphs stay valid. Waits for nothing. *clustered:
 * tokens a layer, the most of any; may be null. NaN or infinity in K or V: that layer stays as it was and is attended in full;
 * tactic_cuda_settle() tells. */
TACTIC_API tactic_status tactic_cuda_cluster(tactic_cuda_batch* batch, int32_t first_layer, int32_t layers,
                                             const tactic_cuda_kv* kv, int32_t sequence, int32_t tokens, int32_t* clustered,
                                             tactic_cuda_stream stream);

/* Waits for the stream; fails when a clustering, an append or a step of the batch met bad values since the last call, naming the
 * first sequence and its worst: TACTIC_INVALID_STATE a length out of range, TACTIC_CORRUPT a block table or an index that
 * contradicts itself, TACTIC_NON_FINITE. The batch is usable afterwards; other sequences were not touched by it. */
TACTIC_API tactic_status tactic_cuda_settle(tactic_cuda_batch* batch, tactic_cuda_stream stream);

/* ---- steps, capturable in a CUDA graph --------------------------------------------------------------------------------- */

/* Every sequence that holds tokens is one token longer. Once a step, before its layers; the newest token's K and V must be in the
 * cache when a layer's step runs. */
TACTIC_API tactic_status tactic_cuda_append(tactic_cuda_batch* batch, tactic_cuda_stream stream);

/* One query row per sequence. All pointers are device pointers, aligned to 16 bytes. */
typedef struct tactic_cuda_step_args {
  size_t size;
  const void* q;               /* [S, q_heads, head_dim], post-RoPE, unscaled */
  int64_t q_sequence_stride;   /* elements, 0: contiguous */
  int32_t q_dtype;             /* f32, f16 or bf16 */
  int32_t out_dtype;           /* f32, f16 or bf16 */
  void* out;                   /* [S, q_heads, v_head_dim], written */
  int64_t out_sequence_stride; /* elements, 0: contiguous */
  float* lse;                  /* [S, q_heads] log-sum-exp base e, or null */
  const float* sink_logits;    /* [q_heads] a logit per head that joins the denominator only, or null */
  float mass;                  /* P of this call, (0, 1]; 0: the batch's option. 1: dense */
  int32_t observe;             /* 1: q shapes the metric of later clusterings (a small kernel more); default 0 */
  void* scratch; /* of tactic_cuda_step_bytes(), aligned to 256 bytes, zeroed once when it was allocated. One scratch
                  * serves all layers of a stream, one after the other */
  size_t scratch_bytes;
} tactic_cuda_step_args;

TACTIC_API tactic_status tactic_cuda_step_args_init(tactic_cuda_step_args* args, size_t size);

/* *bytes of scratch for tactic_cuda_step() with such views and arguments (of any layer, whatever the lengths). */
TACTIC_API tactic_status tactic_cuda_step_bytes(tactic_cuda_batch* batch, const tactic_cuda_kv* kv,
                                                const tactic_cuda_step_args* args, size_t* bytes);

/* Attention of one layer. Sequences without clusters, and the tokens that are in none, are attended in full. Bad values never
 * spread: a head whose q, K or V holds NaN gets NaN, a sequence whose length is out of range gets zeros; tactic_cuda_settle()
 * reports them. */
TACTIC_API tactic_status tactic_cuda_step(tactic_cuda_batch* batch, int32_t layer, const tactic_cuda_kv* kv,
                                          const tactic_cuda_step_args* args, tactic_cuda_stream stream);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TACTIC_TACTIC_CUDA_H */
