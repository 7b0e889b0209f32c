/* Dense and sparse attention through the C API, on keys that come in topics as real ones do: how much was attended, and how far
 * the outputs are apart. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <tactic/tactic.h>

enum { TOKENS = 8192, Q_HEADS = 8, KV_HEADS = 2, DIM = 64, TOPICS = 128 };

static float k[TOKENS][KV_HEADS][DIM];
static float v[TOKENS][KV_HEADS][DIM];
static float topics[TOPICS][KV_HEADS][DIM];

/* About normal: a sum of four uniform numbers. */
static float noise(void) {
  static uint64_t state = 1;
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    sum += (float)(state >> 40) / 16777216.0f - 0.5f;
  }
  return sum * 1.7320508f;
}

static void make_tokens(void) {
  for (int t = 0; t < TOPICS; ++t)
    for (int h = 0; h < KV_HEADS; ++h)
      for (int i = 0; i < DIM; ++i) topics[t][h][i] = noise();
  for (int t = 0; t < TOKENS; ++t)
    for (int h = 0; h < KV_HEADS; ++h)
      for (int i = 0; i < DIM; ++i) {
        k[t][h][i] = topics[t * 7 % TOPICS][h][i] + 0.4f * noise();
        v[t][h][i] = noise();
      }
}

static void make_query(int topic, float q[Q_HEADS][DIM]) {
  for (int h = 0; h < Q_HEADS; ++h)
    for (int i = 0; i < DIM; ++i) q[h][i] = 1.2f * topics[topic][h / (Q_HEADS / KV_HEADS)][i] + 0.3f * noise();
}

static void must(tactic_status status) {
  if (status == TACTIC_OK) return;
  fprintf(stderr, "%s: %s\n", tactic_status_name(status), tactic_last_error());
  exit(1);
}

int main(void) {
  make_tokens();
  printf("%s\n", tactic_build_info());

  tactic_context_config threads;
  must(tactic_context_config_init(&threads, sizeof threads));
  threads.threads = 2;
  tactic_context* context = NULL;
  must(tactic_context_create(&threads, &context));

  /* K and V stay here; the library sees them through a view: [tokens, heads, dim] of floats. */
  tactic_kv_view kv;
  must(tactic_kv_view_init(&kv, sizeof kv));
  kv.k = (tactic_rows){k, TACTIC_F32, DIM, sizeof k[0], sizeof k[0][0], 0};
  kv.v = (tactic_rows){v, TACTIC_F32, DIM, sizeof v[0], sizeof v[0][0], 0};
  kv.kv_heads = KV_HEADS;
  kv.tokens = TOKENS;

  tactic_sequence_config config;
  must(tactic_sequence_config_init(&config, sizeof config));
  config.layers = 1;
  config.attention = (tactic_attention){Q_HEADS, KV_HEADS, DIM, DIM, 0, 0};
  config.rotary_layout = TACTIC_ROTARY_NONE;
  tactic_sequence* sequence = NULL;
  must(tactic_sequence_create(&config, &sequence));

  /* Prefill: recent queries shape the clusters. */
  float q[Q_HEADS][DIM];
  for (int step = 0; step < 64; ++step) {
    make_query(step % TOPICS, q);
    must(tactic_sequence_observe(sequence, 0, &q[0][0], 1, 0, 0));
  }
  tactic_update_report clustered;
  must(tactic_update_report_init(&clustered, sizeof clustered));
  must(tactic_sequence_update(sequence, context, 0, &kv, 1, &clustered));
  size_t index_bytes = 0;
  must(tactic_sequence_index_bytes(sequence, &index_bytes));
  printf("clustered %lld tokens in %.3f s; index %.1f%% of K and V\n", (long long)clustered.clustered, clustered.seconds,
         100.0 * (double)index_bytes / (double)(sizeof k + sizeof v));

  /* Decode: one query row, dense and sparse. */
  static float dense[Q_HEADS][DIM];
  static float sparse[Q_HEADS][DIM];
  int64_t attended[KV_HEADS];
  double share = 0;
  double difference = 0;
  double size = 0;
  enum { STEPS = 16 };
  for (int step = 0; step < STEPS; ++step) {
    make_query(step * 5 % TOPICS, q);
    tactic_attend_args args;
    must(tactic_attend_args_init(&args, sizeof args));
    args.q = &q[0][0];
    args.out = &dense[0][0];
    must(tactic_attend_dense(context, &config.attention, &kv, &args, NULL));
    args.out = &sparse[0][0];
    tactic_report report;
    must(tactic_report_init(&report, sizeof report));
    report.attended = attended;
    report.attended_count = KV_HEADS;
    must(tactic_sequence_attend(sequence, context, 0, &kv, &args, &report));
    for (int h = 0; h < KV_HEADS; ++h) share += (double)attended[h] / TOKENS / KV_HEADS / STEPS;
    for (int h = 0; h < Q_HEADS; ++h)
      for (int i = 0; i < DIM; ++i) {
        const double apart = sparse[h][i] - dense[h][i];
        difference += apart * apart;
        size += (double)dense[h][i] * dense[h][i];
      }
  }
  difference = sqrt(difference / size);
  printf("attended %.2f%% of the tokens; output differs from dense by %.1f%% of its norm\n", 100 * share, 100 * difference);

  tactic_sequence_destroy(sequence);
  tactic_context_destroy(context);
  return share < 0.25 && difference < 0.25 ? 0 : 1;
}
