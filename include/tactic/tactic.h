/* Tactic: adaptive sparse attention for decoding over long contexts (CPU). The C API of libtactic.
 *
 * Instead of a fixed number of tokens, a decode step attends, for every head, as few tokens as reach a set share P (the mass)
 * of the attention weight. "paper" below is Tactic: Adaptive Sparse Attention with Clustering and Distribution Fitting.
 *
 * The way of the data, for each layer:
 *   prefill   tactic_sequence_observe() with queries, then tactic_sequence_update(): clusters the keys, once
 *   decode    tactic_sequence_observe() now and then, tactic_sequence_update() (a test when nothing is due),
 *             tactic_sequence_attend(): one query row, or several rows of a speculative draft
 * K and V stay the caller's memory; every call gets them as a view. A sequence holds token numbers and statistics only.
 *
 * Conventions
 *   shapes    [a, b, c] in brackets, outermost first; arrays are contiguous unless strides are named
 *   strides   of K and V in bytes, of q in floats
 *   heads     query heads [g * h, g * h + g) share KV head h, g = q_heads / kv_heads
 *   logits    s = scale * q.k, natural log domain; log-sum-exp (lse) is base e
 *   errors    every fallible function returns a tactic_status. The message of the last failure is kept by the first handle
 *             among the arguments and by the calling thread (tactic_last_error()); it names field, value, range and remedy.
 *             A successful call leaves the messages as they are. No exception leaves the library, and unless a function says
 *             otherwise a failed call changes nothing.
 *   growth    structs begin with their size, set by their tactic_*_init(). A library reads a shorter struct of an older caller
 *             with defaults for what is missing, and a longer one of a newer caller as long as its unknown tail is zero.
 *             Structs without a size never change.
 *   threads   no global state. A context is a team of threads with its scratch: one call at a time; different contexts run in
 *             parallel. A sequence belongs to no thread and no context: one call at a time, from any thread, with any context.
 *             A second call at the same time is refused with TACTIC_INVALID_STATE.
 *   ownership handles are freed by their destroy function (null is allowed); pointers passed in are read during the call only.
 */
#ifndef TACTIC_TACTIC_H
#define TACTIC_TACTIC_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define TACTIC_API
#else
#define TACTIC_API __attribute__((visibility("default")))
#endif

#define TACTIC_VERSION_MAJOR 0
#define TACTIC_VERSION_MINOR 1
#define TACTIC_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status and version ---------------------------------------------------------------------------------------------- */

typedef enum tactic_status {
  TACTIC_OK = 0,
  TACTIC_INVALID_ARGUMENT = 1, /* a value is out of its range */
  TACTIC_INVALID_STATE = 2,    /* the call does not fit the object's state, or the object is busy with another call */
  TACTIC_OUT_OF_MEMORY = 3,
  TACTIC_IO = 4,         /* a file could not be read or written */
  TACTIC_CORRUPT = 5,    /* saved data is damaged, or belongs to another model or other options */
  TACTIC_NON_FINITE = 6, /* NaN or infinity in q, K, V or a result */
  TACTIC_UNSUPPORTED = 7,
  TACTIC_INTERNAL = 8
} tactic_status;

/* "invalid argument" and so on: a constant string, never null. */
TACTIC_API const char* tactic_status_name(tactic_status status);

/* Version of the library at run time, "0.1.0". */
TACTIC_API const char* tactic_version(void);

/* One constant line: version, backend, instruction set in use ("tactic 0.1.0 cpu avx512"). The environment variable TACTIC_ISA
 * (baseline, avx2, avx512) chooses the instruction set; a name the processor lacks makes tactic_context_create() fail. */
TACTIC_API const char* tactic_build_info(void);

/* Message of the last failed call of the calling thread, "" if none. Valid until the thread's next failed call. */
TACTIC_API const char* tactic_last_error(void);

/* ---- options --------------------------------------------------------------------------------------------------------- */

/* How tokens are chosen for a decode step. */
typedef enum tactic_method {
  TACTIC_METHOD_TACTIC = 0, /* query-metric clusters, spread estimate, joint choice, verify, tail (the default) */
  TACTIC_METHOD_PAPER = 1,  /* the paper as published: L2 clusters, Algorithm 1, union over the group */
  TACTIC_METHOD_FULL = 2    /* every token: lossless */
} tactic_method;

/* The space in which k-means measures the distance between keys. */
typedef enum tactic_metric {
  TACTIC_METRIC_QUERY = 0,    /* mean of (q.k - q.c)^2 over recent queries and coming rotary turns; needs observed queries */
  TACTIC_METRIC_DIAGONAL = 1, /* its diagonal, for an unknown rotary layout */
  TACTIC_METRIC_L2 = 2        /* the paper's */
} tactic_metric;

/* What TACTIC_METHOD_TACTIC spends rows for (docs/how-it-works.md). */
typedef enum tactic_goal {
  TACTIC_GOAL_MASS = 0, /* every query head attends to tokens that hold P of its mass */
  TACTIC_GOAL_ERROR = 1 /* the output errs about as little as if P of the mass were attended; clusters whose mean V stands for
                           them well are not read */
} tactic_goal;

typedef struct tactic_options {
  size_t size;    /* of this struct */
  int32_t method; /* tactic_method */
  /* P, the share of the attention mass to reach, in (0, 1]; default 0.9. 1 attends to every token. */
  float mass;

  /* clustering (paper 4.2) */
  int32_t cluster_size;   /* mean tokens a cluster holds, 2 .. 4096; default 32 (paper: 16). Smaller: more metadata a step */
  int32_t iterations;     /* of k-means, 1 .. 100; default 3 (paper: 10) */
  int32_t segment_tokens; /* tokens of the prompt clustered together, 0: all; else >= 16 * cluster_size. Default 0. k-means costs
                             n^2 / cluster_size inside one segment */
  int32_t metric;         /* tactic_metric; default query */
  float shrinkage;        /* of the query moment towards the identity, (0, 1]; default 0.1 */
  int32_t int8_centroids; /* 0 or 1: int8 centroids, else f16, twice the bytes; default 1 */
  uint64_t seed;          /* of the random start: same seed, same keys, same clusters */
  float outlier_share;    /* share of the clusters that k-means places, before its last assignment, on the tokens farthest from
                             their centroid, [0, 0.5]; default 0.1 (paper: 0) */

  /* always attended, not clustered */
  int32_t sink_tokens;      /* first tokens of the sequence, 0 .. 1024; default 4 */
  int32_t recent_tokens;    /* newest tokens, 0 .. 65536; default 64 */
  int32_t recluster_tokens; /* new tokens that make a further segment (paper 4.3), >= 16 * cluster_size; default 2048 */
  int32_t min_context;      /* shorter contexts run dense, >= 0; default 1024 */

  /* choice of TACTIC_METHOD_TACTIC; switches are 0 or 1 */
  int32_t goal;          /* tactic_goal; default error. Promise keeps a promise about mass: with it the goal is mass */
  int32_t spread;        /* masses by the clusters' spread, else by centroid alone; default 1 */
  int32_t joint;         /* choose for all heads of a group at once, else each alone and the union; default 1 */
  int32_t verify;        /* correct the estimates by what was attended, extend once; default 1 */
  int32_t tail_factor;   /* carry the correction over to the rest; only with verify; default 1 */
  int32_t tail_clusters; /* most dropped clusters that join by their mean V, where worth its bytes, 0 .. 65536; default 512 */
  int32_t promise;       /* probe each KV head and give badly clustered ones a margin, or run them dense; default 0 */

  /* choice of TACTIC_METHOD_PAPER (Algorithm 1), shares of the tokens in ranked order */
  float fit_head;   /* first tokens, whose weights are exact, [0, 1]; default 0.02 */
  float fit_window; /* each of the two windows, [0, 0.5]; default 0.01 */
  float fit_first;  /* place of the first window, [0, 1]; default 0.10 */
  float fit_second; /* place of the second, (fit_first, 1]; default 0.60 */
} tactic_options;

/* Fills the first `size` bytes with the defaults; size = sizeof(tactic_options). */
TACTIC_API tactic_status tactic_options_init(tactic_options* options, size_t size);
/* The same with the paper's settings: L2, 10 iterations from random keys alone, cluster size 16, f16 centroids, one segment,
 * Algorithm 1. */
TACTIC_API tactic_status tactic_options_init_paper(tactic_options* options, size_t size);

/* ---- context: threads and scratch ------------------------------------------------------------------------------------ */

typedef struct tactic_context tactic_context;

/* One worker's part of a parallel run. */
typedef void (*tactic_task)(void* task_data, int32_t worker);

/* Runs task(task_data, 0) .. task(task_data, workers - 1) on `workers` threads AT THE SAME TIME (they wait for each other inside;
 * running them one after another never ends) and returns when all are done: 0. If they cannot be run, runs none and returns
 * anything else; the call of the API then fails with TACTIC_INVALID_STATE. The calling thread may be one of them. Must not throw.
 */
typedef int32_t (*tactic_parallel_run)(void* user, int32_t workers, tactic_task task, void* task_data);

typedef struct tactic_context_config {
  size_t size;
  /* Workers of a call, the calling thread included, 0 .. 1024; 0: one per core the process may use (1 with parallel_run null on
   * a single core). Default 0. With parallel_run at least 1. */
  int32_t threads;
  int32_t reserved; /* 0 */
  /* null: the context makes threads - 1 threads of its own, which spin for about 50 us after a call and then sleep.
   * Else the engine's own pool runs the workers. */
  tactic_parallel_run parallel_run;
  void* parallel_user; /* first argument of parallel_run; must live as long as the context */
} tactic_context_config;

TACTIC_API tactic_status tactic_context_config_init(tactic_context_config* config, size_t size);

/* config null: the defaults. *context is the new context, or null on failure (message: tactic_last_error()). */
TACTIC_API tactic_status tactic_context_create(const tactic_context_config* config, tactic_context** context);
TACTIC_API void tactic_context_destroy(tactic_context* context);
/* Workers of a call; 0 for null. */
TACTIC_API int32_t tactic_context_threads(const tactic_context* context);
/* Message of the context's last failed call, "" if none; valid until its next call. */
TACTIC_API const char* tactic_context_error(const tactic_context* context);

/* ---- views of K and V ------------------------------------------------------------------------------------------------ */

typedef enum tactic_dtype { TACTIC_F32 = 0, TACTIC_F16 = 1, TACTIC_BF16 = 2 } tactic_dtype;

/* Rows of K or of V. The row of (token t, KV head h), `dim` contiguous elements, begins at
 *   data + block(t) * block_stride + in_block(t) * token_stride + h * head_stride
 * with block(t) = block_table[t / block_size], in_block(t) = t % block_size; without a block table 0 and t.
 * Strides in bytes, multiples of the element's size, each at least a row (dim elements). data aligned to the element's size. */
typedef struct tactic_rows {
  const void* data;
  int32_t dtype; /* tactic_dtype; K and V may differ */
  int32_t dim;   /* head_dim for K, v_head_dim for V */
  int64_t token_stride;
  int64_t head_stride;  /* not read when kv_heads is 1 */
  int64_t block_stride; /* not read without a block table */
} tactic_rows;

/* K and V of one sequence in one layer, tokens 0 .. tokens - 1 in sequence order: llama.cpp's cache, vLLM's and FlashInfer's
 * pages (NHD and HND), plain [kv_heads, tokens, head_dim] arrays. K is post-RoPE, as attended. */
typedef struct tactic_kv_view {
  size_t size;
  tactic_rows k;
  tactic_rows v;
  int64_t tokens; /* 1 .. 2^31 - 1 */
  int32_t kv_heads;
  int32_t block_size;         /* tokens a block holds, >= 1; not read without a block table */
  const int32_t* block_table; /* [ceil(tokens / block_size)] block ids, or null */
  /* Blocks that the cache holds. > 0: every block id is checked to be in [0, block_count) in every call (costs a pass over the
   * table; for debugging an engine). 0: not checked. */
  int64_t block_count;
} tactic_kv_view;

TACTIC_API tactic_status tactic_kv_view_init(tactic_kv_view* view, size_t size);

/* ---- attention ------------------------------------------------------------------------------------------------------- */

/* What a layer computes: softmax(softcap(scale * q K^T)) V. Never changes its layout. */
typedef struct tactic_attention {
  int32_t q_heads;    /* a multiple of kv_heads, q_heads / kv_heads <= 16 */
  int32_t kv_heads;   /* 1 .. 4096 */
  int32_t head_dim;   /* of q and K: 64, 80, 96, 128 or 256 */
  int32_t v_head_dim; /* of V and the output: the same values; 0: head_dim */
  float scale;        /* > 0; 0: 1 / sqrt(head_dim) */
  float softcap;      /* > 0: logits become softcap * tanh(logit / softcap); 0: none */
} tactic_attention;

/* The rows of one call. */
typedef struct tactic_attend_args {
  size_t size;
  const float* q;       /* [rows, q_heads, head_dim], post-RoPE, unscaled */
  int64_t q_row_stride; /* floats between rows, >= q_heads * head_dim; 0: contiguous */
  int32_t rows;         /* query rows, 1 .. 65536; default 1. Several rows verify a speculative draft: they share K and V */
  float mass;           /* P of this call, (0, 1]; 0 (default): the sequence's option. Not read by tactic_attend_dense() */
  /* [rows] tokens that a row sees, each 1 .. view.tokens; null: row r sees view.tokens - rows + 1 + r (a draft at the end). */
  const int64_t* row_tokens;
  const float* sink_logits; /* [q_heads] a logit per head that joins the denominator only (attention sink), or null */
  float* out;               /* [rows, q_heads, v_head_dim], written */
  float* lse;               /* [rows, q_heads] log-sum-exp base e of the logits attended, sink included; or null */
} tactic_attend_args;

TACTIC_API tactic_status tactic_attend_args_init(tactic_attend_args* args, size_t size);

/* What a call did. The arrays are the caller's; null where not wanted; a count (elements) smaller than needed is refused. */
typedef struct tactic_report {
  size_t size;
  int64_t* attended; /* [rows, kv_heads] K/V rows attended, the always attended ones included */
  size_t attended_count;
  int64_t* budget; /* [rows, q_heads] tokens the head alone would take (TACTIC_METHOD_PAPER: k of Algorithm 1) */
  size_t budget_count;
  float* estimated_mass; /* [rows, q_heads] share of the mass that the step believes it reached */
  size_t estimated_mass_count;
  uint64_t* token_bits; /* [rows, kv_heads, ceil(view.tokens / 64)] bit t % 64 of word t / 64: token t was attended */
  size_t token_bits_count;
  /* Sums over the rows: */
  double bytes;       /* K, V and metadata read */
  double dense_bytes; /* K and V of all tokens the rows see */
  double rank_us;     /* wall time by stage, microseconds */
  double estimate_us;
  double union_us;
  double attend_us;
  double total_us;
} tactic_report;

TACTIC_API tactic_status tactic_report_init(tactic_report* report, size_t size);

/* Exact attention over all tokens each row sees, no sequence needed: lossless, for short contexts and P = 1.
 * report may be null. Cost: one read of K and V per row, all heads together.
 * TACTIC_NON_FINITE: NaN or infinity in q (nothing is computed), or in the result of some heads (named: the first; their rows of
 * K or V hold NaN or infinity); the outputs of the other heads and rows are valid. */
TACTIC_API tactic_status tactic_attend_dense(tactic_context* context, const tactic_attention* attention, const tactic_kv_view* kv,
                                             const tactic_attend_args* args, tactic_report* report);

/* ---- sequences ------------------------------------------------------------------------------------------------------- */

/* The index of one sequence over all layers: clusters of its keys, moments of its queries. About 10% of the K/V bytes it
 * indexes (tactic_sequence_index_bytes()). Segments are immutable and shared between forks. */
typedef struct tactic_sequence tactic_sequence;

/* Where the rotary position embedding turns pairs of dimensions: (2p, 2p + 1) interleaved, or (p, p + pairs) halves. */
typedef enum tactic_rotary_layout {
  TACTIC_ROTARY_UNKNOWN = 0, /* the metric falls back to its diagonal: somewhat more tokens for the same mass */
  TACTIC_ROTARY_NONE = 1,
  TACTIC_ROTARY_INTERLEAVED = 2,
  TACTIC_ROTARY_HALVES = 3
} tactic_rotary_layout;

typedef struct tactic_sequence_config {
  size_t size;
  tactic_attention attention;    /* of every layer */
  int32_t layers;                /* 1 .. 4096 */
  int32_t rotary_layout;         /* tactic_rotary_layout; default unknown */
  int32_t rotary_pairs;          /* turned pairs, 1 .. head_dim / 2; 0: head_dim / 2 */
  float rotary_base;             /* > 0: pair p turns by rotary_base^(-p / pairs) radians a position; default 10000 */
  const float* rotary_frequency; /* [rotary_pairs] radians a position instead of rotary_base (scaled RoPE), or null; copied */
  const tactic_options* options; /* null: the defaults; copied */
} tactic_sequence_config;

TACTIC_API tactic_status tactic_sequence_config_init(tactic_sequence_config* config, size_t size);

/* *sequence is the new, empty sequence, or null on failure (message: tactic_last_error()). */
TACTIC_API tactic_status tactic_sequence_create(const tactic_sequence_config* config, tactic_sequence** sequence);
TACTIC_API void tactic_sequence_destroy(tactic_sequence* sequence);
/* Message of the sequence's last failed call, "" if none; valid until its next call. */
TACTIC_API const char* tactic_sequence_error(const tactic_sequence* sequence);

/* A copy that lives its own life and shares all segments so far (a shared prefix costs its bytes once). */
TACTIC_API tactic_status tactic_sequence_fork(tactic_sequence* sequence, tactic_sequence** fork);

/* The options in force, into the caller's struct (its size field set). */
TACTIC_API tactic_status tactic_sequence_get_options(tactic_sequence* sequence, tactic_options* options);
/* Replaces the options. Changes that need other clusters (metric, cluster_size, iterations, segment_tokens, shrinkage,
 * int8_centroids, sink_tokens, seed, method paper or not) drop the segments: the next update() clusters again. */
TACTIC_API tactic_status tactic_sequence_set_options(tactic_sequence* sequence, const tactic_options* options);

/* Queries of the prompt or of decode steps, in order: they shape the metric (the last 128 tokens) and probe the heads (promise).
 * q [tokens, q_heads, head_dim], post-RoPE, unscaled; strides in floats, 0: contiguous. tokens >= 1. Give at least the end of the
 * prompt before its update(). Cost: min(tokens, 128) * q_heads * head_dim^2 multiply-adds.
 * TACTIC_NON_FINITE: NaN or infinity among the last 128 tokens. */
TACTIC_API tactic_status tactic_sequence_observe(tactic_sequence* sequence, int32_t layer, const float* q, int32_t tokens,
                                                 int64_t token_stride, int64_t head_stride);

typedef struct tactic_update_report {
  size_t size;
  int64_t clustered; /* tokens that joined segments in this call */
  double seconds;    /* the pause; 0 when nothing was due */
} tactic_update_report;

TACTIC_API tactic_status tactic_update_report_init(tactic_update_report* report, size_t size);

/* Clusters what is due in a layer: the prompt once min_context tokens are there, all but the sinks and the recent ones; later a
 * further segment each time recluster_tokens have gathered (paper 4.3). Call before attend(); nearly free when nothing is due.
 * may_recluster 0 leaves a further segment for a later call, so that an engine can spread the pauses: one layer a step.
 * report may be null. Cost: (iterations + 1) * n^2 / cluster_size * head_dim multiply-adds a KV head for n tokens of a segment.
 * TACTIC_NON_FINITE: NaN or infinity in K or V (the token is named); the layer stays as it was and runs dense. */
TACTIC_API tactic_status tactic_sequence_update(tactic_sequence* sequence, tactic_context* context, int32_t layer,
                                                const tactic_kv_view* kv, int32_t may_recluster, tactic_update_report* report);

/* *due: how many tokens an update() of the layer would cluster with `tokens` tokens in the view; 0: nothing. */
TACTIC_API tactic_status tactic_sequence_due(tactic_sequence* sequence, int32_t layer, int64_t tokens, int64_t* due);

/* The tokens [*first, *last) of the layer that are clustered; both 0 when none are. */
TACTIC_API tactic_status tactic_sequence_clustered(tactic_sequence* sequence, int32_t layer, int64_t* first, int64_t* last);

/* Attention of args->rows query rows of a layer (paper 4.2, 4.3). Dense where nothing is clustered, the context is below
 * min_context, P is 1 or the method is full; a row that sees less than the clustered tokens runs dense as well. The newest tokens
 * need no call of their own: the view's tokens beyond the clustered ones are attended always. report may be null.
 * Cost: see tactic_report.bytes; no allocation once warm. Errors as tactic_attend_dense(). */
TACTIC_API tactic_status tactic_sequence_attend(tactic_sequence* sequence, tactic_context* context, int32_t layer,
                                                const tactic_kv_view* kv, const tactic_attend_args* args, tactic_report* report);

/* Rolls back to `tokens` >= 0 tokens: segments that reach past it go; their tokens below it count as recent. */
TACTIC_API tactic_status tactic_sequence_truncate(tactic_sequence* sequence, int64_t tokens);
/* K or V of tokens [first, last) changed or vanished, 0 <= first <= last: segments that overlap them go, and all later ones. */
TACTIC_API tactic_status tactic_sequence_invalidate(tactic_sequence* sequence, int64_t first, int64_t last);
/* Forgets segments and queries; keeps the configuration. */
TACTIC_API tactic_status tactic_sequence_clear(tactic_sequence* sequence);

/* *bytes: memory of the index, shared segments counted in full. */
TACTIC_API tactic_status tactic_sequence_index_bytes(tactic_sequence* sequence, size_t* bytes);

/* ---- save and load (docs/index-format.md) ---------------------------------------------------------------------------- */

/* Writes the index to `path`, through a temporary file beside it that is renamed when complete: a failure leaves no half-written
 * file and an existing one untouched. K and V are not part of it. */
TACTIC_API tactic_status tactic_sequence_save(tactic_sequence* sequence, const char* path);
/* Replaces the index by that of a file saved with the same layers, shape, method and cluster_size.
 * TACTIC_CORRUPT: damaged, truncated, or made for another model or other options. A failure leaves the sequence as it was. */
TACTIC_API tactic_status tactic_sequence_load(tactic_sequence* sequence, const char* path);

/* *bytes: what tactic_sequence_save_buffer() will write. Cost: about that of writing. */
TACTIC_API tactic_status tactic_sequence_save_size(tactic_sequence* sequence, size_t* bytes);
/* The same bytes as a file, into buffer [capacity]; *written: how many. Too small a buffer: TACTIC_INVALID_ARGUMENT, and the
 * buffer's contents are then unspecified. */
TACTIC_API tactic_status tactic_sequence_save_buffer(tactic_sequence* sequence, void* buffer, size_t capacity, size_t* written);
TACTIC_API tactic_status tactic_sequence_load_buffer(tactic_sequence* sequence, const void* buffer, size_t bytes);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TACTIC_TACTIC_H */
