/* What a program that loaded the plug-in may ask of it: settings, statistics, traces, the index as a file. Plain C.
 *
 *   ggml_backend_load(".../libtactic-llama.so");            // or GGML_BACKEND_PATH; before the first llama_context is made
 *   ggml_backend_reg_t reg = ggml_backend_reg_by_name("Tactic");
 *   tactic_llama_control_fn get = (tactic_llama_control_fn)ggml_backend_reg_get_proc_address(reg, TACTIC_LLAMA_CONTROL);
 *   const tactic_llama_control* tactic = get();             // lives as long as the process
 *
 * reg is NULL when the plug-in refused this ggml (it printed why): the engine then runs stock.
 * Functions that return int give 0, or -1 and a line in last_error(). They may be called between two llama_decode(), not
 * during one; the trace callback is called inside llama_decode() by the thread that called it.
 */
#ifndef TACTIC_LLAMA_CONTROL_H
#define TACTIC_LLAMA_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TACTIC_LLAMA_CONTROL "tactic_llama_control"

/* Sums since the last reset_stats(). A row is one token in one layer whose attention Tactic computed. */
typedef struct tactic_llama_stats {
  size_t size; /* set by the caller: sizeof(tactic_llama_stats) */
  uint64_t rows;
  uint64_t sparse_rows;  /* rows that did not attend to every token */
  uint64_t declined;     /* attention nodes of decode size that were left to the engine */
  uint64_t observed;     /* attention nodes of prefill size whose queries were looked at */
  double attended_share; /* mean over rows and KV heads: tokens attended / tokens in context */
  double estimated_mass; /* mean over sparse rows and query heads of the share the step believes it reached; 1 without any */
  double bytes;          /* K, V and metadata read */
  double dense_bytes;    /* K and V of all tokens of the same rows */
  double rank_us, estimate_us, union_us, attend_us; /* wall time by stage, microseconds */
  double total_us;                                  /* of the whole rows, clustering not counted */
  double cluster_seconds;                           /* the pauses */
  uint64_t clustered_tokens;                        /* summed over layers */
  uint64_t index_bytes;                             /* held now, all layers */
} tactic_llama_stats;

/* Rows of K or V in the engine's memory: cell c of KV head h starts at data + c * cell_stride + h * head_stride (bytes). */
typedef struct tactic_llama_rows {
  const void* data;
  int32_t type; /* 0 f32, 1 f16, 2 bf16 */
  int32_t dim;
  int64_t cell_stride;
  int64_t head_stride;
} tactic_llama_rows;

/* One row (a token in a layer) that was just computed. Pointers are valid during the call. */
typedef struct tactic_llama_trace {
  size_t size;
  int32_t layer;  /* as in the name of the K cache tensor, cache_k_l<layer> */
  int32_t sparse; /* 0: every token was attended */
  int32_t q_heads, kv_heads, head_dim, v_head_dim;
  int64_t tokens;       /* in the context of this row, its own included */
  const int32_t* cells; /* [tokens] cell of each token, or NULL: token t is in cell t */
  const float* q;       /* [q_heads, head_dim] post-RoPE, unscaled */
  const float* out;     /* [q_heads, v_head_dim] */
  tactic_llama_rows k, v;
  float scale;
  const int64_t* attended;     /* [kv_heads] tokens attended */
  const int64_t* budget;       /* [q_heads] tokens the head alone would take, always-attended ones included */
  const float* estimated_mass; /* [q_heads] */
  const float* true_mass;      /* [q_heads] share of the exact softmax mass attended, or NULL without TACTIC_TRACE_TRUE_MASS */
  const uint64_t* token_bits;  /* [kv_heads, words], words = ceil(tokens / 64): bit t set, token t was attended */
  int64_t prompt_tokens;       /* the tokens before the first row that was attended since restart_prompt() */
  const uint64_t* query_token_bits; /* [q_heads, words] what each query head attended, or NULL: its KV head's token_bits */
} tactic_llama_trace;

typedef void (*tactic_llama_trace_fn)(const tactic_llama_trace* row, void* user);
enum { TACTIC_TRACE_TRUE_MASS = 1 }; /* reads every K row once more */

typedef struct tactic_llama_control {
  size_t size;
  const char* (*last_error)(void);

  /* Names and values as in the environment, docs/llama.md, in lower case without TACTIC_: set("method", "paper"),
   * set("mass", "0.9"), set("cluster_size", "32"). Takes effect with the next llama_decode(). method: tactic, paper, full, or
   * stock (the engine's own attention). "tactic" and "paper" bring their own defaults for options that were not set by name.
   * set("preset", "tactic" or "paper") forgets what was set by name, the environment's included: that pipeline's defaults. */
  int (*set)(const char* name, const char* value);
  /* The value as text, or NULL for an unknown name. Valid until the next call from the same thread. */
  const char* (*get)(const char* name);

  void (*read_stats)(tactic_llama_stats* stats);
  void (*reset_stats)(void);
  void (*set_trace)(tactic_llama_trace_fn trace, void* user, unsigned flags); /* NULL ends it */

  /* The clusters of all layers of the cache that decoded last. Save when the prompt was decoded and one token generated;
   * load after the engine's own state was restored and before the next llama_decode(): the file is checked against the
   * keys in the cache at the first step, and dropped (a log line, dense until clustered anew) where they differ. */
  int (*save_index)(const char* path);
  int (*load_index)(const char* path);
  void (*drop_index)(void); /* forget clusters and observed queries; the next decode step clusters again */

  /* For comparisons, docs/baselines.md. */
  int (*save_budgets)(
      const char* path);        /* mean tokens by layer and head since reset_stats(), as JSON that set("budget", path) reads */
  void (*restart_prompt)(void); /* the prompt of the next decode step ends just before it */
  int (*save_watch)(const char* path); /* what the baselines need of the prompt besides K and V; load it after the engine's */
  int (*load_watch)(const char* path); /* own state was restored and before the next llama_decode() */
  /* 0 when the budget that was set suffices for the method that was set, in a model of this shape and a prompt of this length. */
  int (*check_budget)(int layers, int q_heads, int kv_heads, int64_t prompt_tokens);
  const char* (*step_error)(void); /* why the last llama_decode() failed inside this plug-in, once; "" if it did not */
} tactic_llama_control;

typedef const tactic_llama_control* (*tactic_llama_control_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
