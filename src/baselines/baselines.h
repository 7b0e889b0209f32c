// Fixed-budget methods and oracles that Tactic is compared with, behind one door: a state per sequence and layer that is begun
// where the prompt ends and then chooses the tokens of every decode step.
//
// Common to all: the prompt was read densely; keys are post-RoPE and keep their positions; tokens behind the prompt (generated
// ones) are always attended and never counted. A budget counts prompt tokens: window, sinks and current page included.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/attend.h"
#include "core/error.h"
#include "core/team.h"
#include "core/view.h"
#include "decode/decode.h"

namespace tactic {

enum class Baseline : std::int32_t {
  quest = 0,          // each step: pages of consecutive tokens by an upper bound of q . k
  streaming_llm = 1,  // first tokens and newest tokens
  snapkv = 2,         // once: tokens that the last queries of the prompt look at
  pyramidkv = 3,      // the same, more tokens for lower layers
  ada_snapkv = 4,     // the same, a layer's tokens divided among its heads by their scores
  h2o = 5,            // once: half the tokens that all queries of the prompt looked at most, half newest
  oracle_top_k = 6,   // each step: the B tokens of the largest exact weight
  oracle_top_p = 7,   // each step: the fewest tokens that hold a share P of the exact mass
};
constexpr int kBaselines = 8;

// quest, streamingllm, snapkv, pyramidkv, ada-snapkv, h2o, oracle-top-k, oracle-top-p.
const char* name_of(Baseline baseline);
std::optional<Baseline> baseline_named(std::string_view name);

// What the query heads of a KV head share.
enum class Sharing : std::int32_t {
  natural = 0,  // quest, oracle-top-k: `one` when the budget is of KV heads, `none` when of query heads; oracle-top-p: `united`;
                // the others choose once for a KV head by their own rule (scores are the mean over the group)
  none = 1,     // every query head chooses for itself and attends to its own tokens (Quest's code)
  united = 2,   // every query head chooses for itself and attends to the union
  one = 3,      // one choice: quest sums the bounds, oracles the weights of the group
};

enum class Pool : std::int32_t { maximum = 0, average = 1 };  // average counts the padding, as kvpress does

// How Ada-SnapKV turns c_h, a head's part of the layer's top H * B, into its budget.
enum class AdaRule : std::int32_t {
  code = 0,       // round((1 - a) c_h + floor(a B)): Ada-KV's code
  paper = 1,      // round(a c_h + floor((1 - a) B)): its Algorithm 1
  safeguard = 2,  // each head's top floor(a C) first, the rest to the best of all heads: kvpress
};

struct BaselineOptions {
  Baseline method = Baseline::quest;
  Sharing sharing = Sharing::natural;
  float mass = 0.9f;     // P of oracle-top-p, in (0, 1]
  int page_tokens = 16;  // of quest, 1 .. 4096
  int window = 32;       // newest prompt tokens that score the others and are kept, 1 .. 128
  int pool_kernel = 7;   // odd, 1 .. 63
  Pool pool = Pool::maximum;
  int sinks = 4;           // of streamingllm, 0 .. 1024
  int forced_sinks = 0;    // first tokens that every method keeps, inside the budget, 0 .. 1024
  int pyramid_beta = 20;   // the top layer keeps B / beta, 1 .. 1000
  float ada_share = 0.2f;  // a of AdaRule, 0 .. 1
  AdaRule ada_rule = AdaRule::code;
};
// Throws Error(invalid_argument) with field, value and range.
void validate(const BaselineOptions& options);

// Prompt tokens a head may attend to.
struct Budget {
  enum class Unit : std::int32_t { tokens, share };
  Unit unit = Unit::tokens;
  double amount = 1024;  // tokens, or a share of the prompt in (0, 1]; not read with a table
  // [layers][heads]: a mean for each layer and KV head, or query head, as a Tactic run logs it. Empty: none.
  std::vector<std::vector<double>> table;
  bool of_query_heads = false;  // what `table` or `amount` counts: tokens of a query head, else of a KV head
};
// "512", "6.5%". Throws Error(invalid_argument). Tables are read by the program and the plug-in.
Budget budget_of(std::string_view text);
// The fewest tokens a method can work with: 3 pages, window + 1, sinks + 1, 2, 1.
std::int64_t least_budget(const BaselineOptions& options);

// Where a layer stands in its model.
struct LayerPlace {
  int layer = 0;
  int layers = 1;
};

// Tokens for each KV head [kv_heads], or, if the choice is each query head's, [q_heads]: the budget rounded, PyramidKV's slope
// applied. Throws Error(invalid_argument) that names a budget below the least, or a table of another shape.
std::vector<std::int64_t> head_budgets(const BaselineOptions& options, const Budget& budget, const Shape& shape, LayerPlace place,
                                       std::int64_t prompt);
// Checks all layers at once, so that a run fails before its first token.
void check_budgets(const BaselineOptions& options, const Budget& budget, const Shape& shape, int layers, std::int64_t prompt);

// Queries (post-RoPE, unscaled) of `rows` consecutive tokens: row r, head h at q + r * row_stride + h * head_stride floats.
struct QueryRows {
  const float* q = nullptr;
  int rows = 0;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
};

// What prefill shows of one layer: the newest queries by token number and, for h2o, the softmax weight each token received from
// all queries so far.
class PromptWatch {
 public:
  static constexpr int kKept = 128;  // newest tokens whose queries are kept
  PromptWatch(const Shape& shape, const AttentionParams& params);

  // Queries of tokens [first, first + rows). Tokens seen before are replaced, those behind them forgotten. With `columns`, kv
  // holds at least tokens [0, first + rows) and their weights are added: as much arithmetic as prefill's own attention scores.
  void see(Team& team, const QueryRows& queries, std::int64_t first, const KvView& kv, bool columns);
  void clear();

  // Queries of tokens [last - count, last), [count, q_heads, head_dim]; false: not all were seen.
  bool queries(std::int64_t last, int count, std::vector<float>& out) const;
  // [kv_heads, tokens] sums over queries and group of the weights that `tokens` queries gave; empty: they were not watched from
  // the first token to exactly there.
  std::span<const double> columns(std::int64_t tokens) const;

  // For a prompt whose K and V are kept as the engine's state: what begin() needs besides. load() throws Error(corrupt).
  void save(std::ostream& out) const;
  void load(std::istream& in);

 private:
  bool repeats(const QueryRows& queries, std::int64_t first) const;
  void forget_columns();
  void grow_columns(Team& team, const QueryRows& queries, std::int64_t first, const KvView& kv);

  Shape shape_;
  AttentionParams params_;
  std::vector<float> ring_;            // [kKept, q_heads, head_dim], token t in slot t % kKept
  std::int64_t first_ = 0, last_ = 0;  // tokens in the ring
  std::vector<double> columns_;        // [kv_heads, column_tokens_]
  std::int64_t column_tokens_ = 0;
};

// The tokens of one step.
struct Selection {
  bool by_query_head = false;                     // lists are of query heads, else of KV heads
  std::vector<std::vector<std::int32_t>> tokens;  // [q_heads or kv_heads], ascending; generated tokens included
  std::vector<std::int64_t> own;                  // [q_heads] tokens the head chose by itself, generated included
  double metadata_bytes = 0;                      // read to choose; an oracle knows for nothing
};

// One method on one layer of one sequence.
class LayerBaseline {
 public:
  LayerBaseline(const Shape& shape, const AttentionParams& params, const BaselineOptions& options, Budget budget,
                LayerPlace place);

  // The prompt is tokens [0, prompt) of kv. Throws Error(invalid_argument) for budgets and Error(invalid_state) when `watch`
  // lacks what the method needs of the prompt's queries.
  void begin(Team& team, const KvView& kv, std::int64_t prompt, const PromptWatch& watch);
  std::int64_t prompt() const { return prompt_; }  // -1: not begun
  // Tokens from `tokens` on were taken back; taking back prompt tokens ends the state: prompt() is -1.
  void truncate(std::int64_t tokens);

  // One query row over kv.tokens > prompt() tokens, its own included. Scratch is kept.
  void select(Team& team, const Query& query, const KvView& kv, Selection& out);

  // [kv_heads] or [q_heads] after begin().
  std::span<const std::int64_t> budgets() const { return budgets_; }

 private:
  void keep(Team& team, const KvView& kv, const PromptWatch& watch);
  void keep_ends();
  void keep_heavy(const PromptWatch& watch);
  void keep_looked_at(Team& team, const KvView& kv, const PromptWatch& watch);
  void force_sinks(std::span<float> scores) const;
  void update_pages(Team& team, const KvView& kv);
  void select_pages(Team& team, const Query& query, const KvView& kv, Selection& out);
  void select_by_weight(Team& team, const Query& query, const KvView& kv, Selection& out);
  std::vector<std::int32_t> choose_heaviest(std::span<const double> weights, int heads, std::span<const float> order,
                                            std::size_t chooser) const;
  void share_out(std::int64_t tokens, Selection& out) const;

  Shape shape_;
  AttentionParams params_;
  BaselineOptions options_;
  Budget budget_;
  LayerPlace place_;
  std::int64_t prompt_ = -1;
  std::vector<std::int64_t> budgets_;
  std::vector<std::vector<std::int32_t>> kept_;    // [kv_heads] of methods that choose once, ascending
  std::vector<float> low_, high_;                  // quest: [pages, kv_heads, head_dim] elementwise bounds of K
  std::int64_t bounded_ = 0;                       // tokens that low_ and high_ cover
  std::vector<std::vector<std::int32_t>> chosen_;  // prompt tokens of a step, by KV or query head as `sharing` has it
  std::vector<float> logits_;                      // oracles: [q_heads, tokens]
  std::vector<double> weights_;                    // the same, softmax
};

// How the query heads really share, `natural` resolved.
Sharing sharing_of(const BaselineOptions& options, const Budget& budget);

// Attention of one query row over a selection: out [q_heads, v_head_dim], lse [q_heads] or null. Fills the report: attended (the
// union over the group), budget (own), estimated_mass, token_bits (the union), bytes, dense_bytes, attend_us.
// Returns Status::non_finite like decode_step.
Status attend_selection(Team& team, const Query& query, const KvView& kv, const Selection& selection, float* out, float* lse,
                        StepReport* report);

}  // namespace tactic
