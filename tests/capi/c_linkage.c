/* tactic.h from C: every function links, and a dense step gives the mean of V when q is zero. */
#include <stddef.h>

#include "tactic/tactic.h"

int capi_from_c(float* mean_of_two);
const void* capi_every_function(size_t i);

/* Dense attention of one head over two tokens. */
int capi_from_c(float* mean_of_two) {
  static float k[2][64];
  static float v[2][64];
  float q[64] = {0};
  float out[64];
  tactic_context_config config;
  tactic_context* context = NULL;
  tactic_attention attention = {1, 1, 64, 64, 0, 0};
  tactic_kv_view kv;
  tactic_attend_args args;
  tactic_status status;
  v[0][63] = 1;
  v[1][63] = 3;
  if (tactic_context_config_init(&config, sizeof config) != TACTIC_OK) return 1;
  config.threads = 1;
  if (tactic_context_create(&config, &context) != TACTIC_OK) return 2;
  if (tactic_kv_view_init(&kv, sizeof kv) != TACTIC_OK) return 3;
  kv.k.data = k;
  kv.v.data = v;
  kv.k.dtype = kv.v.dtype = TACTIC_F32;
  kv.k.dim = kv.v.dim = 64;
  kv.k.token_stride = kv.v.token_stride = sizeof k[0];
  kv.kv_heads = 1;
  kv.tokens = 2;
  if (tactic_attend_args_init(&args, sizeof args) != TACTIC_OK) return 4;
  args.q = q;
  args.out = out;
  status = tactic_attend_dense(context, &attention, &kv, &args, NULL);
  *mean_of_two = out[63];
  tactic_context_destroy(context);
  return status == TACTIC_OK ? 0 : 5;
}

typedef void (*function)(void);

static const function functions[] = {
    (function)tactic_status_name,          (function)tactic_version,
    (function)tactic_build_info,           (function)tactic_last_error,
    (function)tactic_options_init,         (function)tactic_options_init_paper,
    (function)tactic_context_config_init,  (function)tactic_context_create,
    (function)tactic_context_destroy,      (function)tactic_context_threads,
    (function)tactic_context_error,        (function)tactic_kv_view_init,
    (function)tactic_attend_args_init,     (function)tactic_report_init,
    (function)tactic_attend_dense,         (function)tactic_sequence_config_init,
    (function)tactic_sequence_create,      (function)tactic_sequence_destroy,
    (function)tactic_sequence_error,       (function)tactic_sequence_fork,
    (function)tactic_sequence_get_options, (function)tactic_sequence_set_options,
    (function)tactic_sequence_observe,     (function)tactic_update_report_init,
    (function)tactic_sequence_update,      (function)tactic_sequence_due,
    (function)tactic_sequence_clustered,   (function)tactic_sequence_attend,
    (function)tactic_sequence_truncate,    (function)tactic_sequence_invalidate,
    (function)tactic_sequence_clear,       (function)tactic_sequence_index_bytes,
    (function)tactic_sequence_save,        (function)tactic_sequence_load,
    (function)tactic_sequence_save_size,   (function)tactic_sequence_save_buffer,
    (function)tactic_sequence_load_buffer,
};

/* Null behind the last. */
const void* capi_every_function(size_t i) {
  return i < sizeof functions / sizeof functions[0] ? (const void*)&functions[i] : NULL;
}
