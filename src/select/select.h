// Choosing tokens: rank, estimate, budget, union (paper 4.3 to 4.5; estimation.md 2).
//
// All functions work on one KV head with its group of G query heads and are called by one worker; score_centroids may be
// split over clusters. Masses are relative: mass = exp(logit - reference[g]), natural log domain.
// Matrices are [G, stride] with stride = HeadTable::stride, a multiple of 16; columns count .. stride - 1 are padding.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/attend.h"
#include "cluster/cluster.h"
#include "core/buffer.h"
#include "core/options.h"

namespace tactic {

// The clusters of one KV head over all segments, as flat arrays. Rebuilt when segments come or go, not per step.
struct HeadTable {
  struct Part {  // one segment's clusters: columns first .. first + clusters->count - 1
    const HeadClusters* clusters = nullptr;
    std::shared_ptr<const Segment> owner;
    int first = 0;
  };
  int count = 0;     // clusters
  int stride = 0;    // count rounded up to 16
  int head_dim = 0;  // of the centroids
  std::int64_t token_count = 0;
  std::vector<Part> parts;
  Buffer<float> size;                                 // [stride] tokens a cluster holds, 0 in the padding
  Buffer<float> spread;                               // [stride]
  Buffer<std::int32_t> part_of;                       // [stride]
  std::vector<std::span<const std::int32_t>> tokens;  // [count] token numbers
  std::int64_t first_token = 0;                       // of all parts: tokens are contiguous from here
  Buffer<std::int32_t> column_of;                     // [token_count] cluster of token first_token + i

  // Copies of the centroids in blocks of 16 columns, so that a vector holds one or two dims of 16 clusters and a dot product
  // needs no horizontal sum; zero in the padding. f16 as soon as one segment has f16 centroids. Less than 1% of K and V.
  Buffer<std::int8_t> packed8;     // [stride / 16, head_dim / 2, 16, 2]
  Buffer<float> centroid_scale;    // [stride] of packed8
  Buffer<std::uint16_t> packed16;  // [stride / 16, head_dim, 16]

  // The pooled covariances of the parts on and above the diagonal, in squares of kCovarianceSide in the order in which
  // half_variances() reads them: f16, in units of a dim's mean variance. covariance_unit [parts]: that unit over the mean spread,
  // 0 where every key is its centroid.
  static constexpr int kCovarianceSide = 16;
  Buffer<std::uint16_t> covariance16;  // [parts, covariance_size(head_dim)]
  Buffer<float> covariance_unit;
};
constexpr int covariance_size(int head_dim) {
  const int squares = head_dim / HeadTable::kCovarianceSide;
  return squares * (squares + 1) / 2 * HeadTable::kCovarianceSide * HeadTable::kCovarianceSide;
}
HeadTable make_table(std::span<const std::shared_ptr<const Segment>> segments, int kv_head);
// Of every KV head; none without segments.
std::vector<HeadTable> make_tables(std::span<const std::shared_ptr<const Segment>> segments);

// ---- rank ------------------------------------------------------------------------------------------------------------

// logits[g * stride + c] for table columns [first, last): scale * q_g . centroid_c, softcap applied. Bytes: centroids.
// Split at multiples of 16. With int8 centroids q is rounded to 16 bits of its largest element: an error of about 1e-5 |q| |c|,
// where the centroids' own rounding is 4e-3. A head whose q is not finite gets NaN.
void score_centroids(const Query& query, int kv_head, const HeadTable& table, int first, int last, float* logits);

// ---- choice, `tactic` ------------------------------------------------------------------------------------------------

// Scratch of one worker, grown on demand and kept.
struct SelectScratch {
  Buffer<float> floats;
  Buffer<std::int32_t> ints;
  Buffer<std::uint64_t> words;
};

// h [G, parts]: h_g = scale^2 q_g^T S q_g / (2 t), so that h_g * spread_c is half the variance of head g's logits in cluster c.
void half_variances(const Query& query, int kv_head, const HeadTable& table, float* h);

// e [G, stride] = size_c exp(min(logit + h spread_c - reference_g, 60)); 0 in the padding. h may be null: centroid alone.
// With a softcap the spread term is scaled by its squared slope at the centroid's logit.
void estimate_masses(const HeadTable& table, int group, const float* logits, const float* h, const float* reference, float* mass,
                     float softcap = 0);

// Adds clusters to `chosen` until every head has `target_g` of its total (fixed_g + sum_c mass_gc), for all heads at once
// (lambda rule) or, with joint = false, head by head and united.
//   mass    [G, stride]; fixed [G] on the same scale; target [G] in (0, 1)
//   chosen  [stride] 0/1, in and out; list: room for `count` cluster numbers
//   covered [G] or null: covered share of each head's total, out
// Returns how many clusters were added, written to list in unspecified order; list may be null. No sort: a cut is found by
// bisection of the score's bits over the candidates that are left. Clusters of no mass are never added, except that a head whose
// total is not a positive finite number makes it take every cluster (covered = 1).
int choose(const HeadTable& table, int group, const float* mass, const float* fixed, const float* target, bool joint,
           std::uint8_t* chosen, std::int32_t* list, float* covered, SelectScratch& scratch);

// r [G] = clamp(sum exact / sum estimated, 1, 4) over the faintest chosen clusters (by mass / size) that hold 10% of head g's
// chosen estimate. exact: [G, stride], valid in chosen columns.
void tail_factors(const HeadTable& table, int group, const float* mass, const float* exact, std::span<const std::int32_t> chosen,
                  float* factor, SelectScratch& scratch);

// exact [G, stride], chosen columns only: sum of exp(logit - reference_g) over a cluster's tokens, from the logits that attention
// wrote of list_tokens() of the same clusters: head g's token i at token_logits[g * token_stride + i].
void sum_exact_masses(const HeadTable& table, int group, const float* token_logits, std::int64_t token_stride,
                      const float* reference, std::span<const std::int32_t> clusters, float* exact);

// The `limit` heaviest dropped clusters by max_g of w_gc / total_g, w_gc = size_c exp(logit + log cosh(sqrt(2 h spread_c)) -
// reference_g), the exponent at most 60; with a loss_per_row (loss.h) only those that are worth their mean V at that price. total
// [G]. Writes cluster numbers, ascending, to list and weights [G, limit] (row stride limit); returns how many, their mean V asked
// for. bound: null, or [G, stride] of at least w_gc, such as estimate_masses gives (log cosh s <= s^2 / 2): with a price it tells
// cheaply of most clusters that they are not worth it.
int choose_tail(const HeadTable& table, int group, const float* logits, const float* h, const float* reference,
                const float* total, const std::uint8_t* chosen, int limit, std::int32_t* list, float* weights,
                SelectScratch& scratch, float softcap = 0, float loss_per_row = 0, const float* bound = nullptr);

// Adds sum_c w_gc mean(V_c) to out's outputs and w_gc to its sums; out's maximum must be `reference` already.
void add_tail(const HeadTable& table, int group, int v_head_dim, std::span<const std::int32_t> list, const float* weights,
              int weight_stride, const Partial& out);

// ---- choice, `paper` -------------------------------------------------------------------------------------------------

struct PaperReport {
  std::int64_t sampled = 0;  // K rows read to fit, after the union over the group
};

// Algorithm 1 for every head of the group, then the union: bitmap (words of 64 tokens, token numbers of the sequence) gets the
// chosen tokens set. logits: of the centroids. fixed, reference: [G]. budget [G], estimated [G]: k of each head and its estimated
// covered share, out.
void choose_paper(const Query& query, const KvView& kv, int kv_head, const HeadTable& table, const float* logits,
                  const float* fixed, const float* reference, const Options& options, std::uint64_t* bitmap, std::int64_t* budget,
                  float* estimated, PaperReport* report, SelectScratch& scratch);

// ---- tokens ----------------------------------------------------------------------------------------------------------

// Writes the token numbers of the listed clusters, one cluster behind the other, to ids (room for all). Returns how many. Their
// rows are gathered no slower than in ascending order (2 MB pages; 5% slower with 4 KB pages, docs/kernels.md).
std::int64_t list_tokens(const HeadTable& table, std::span<const std::int32_t> clusters, std::int32_t* ids);

// Sets the bits of the tokens of the listed clusters.
void mark_tokens(const HeadTable& table, std::span<const std::int32_t> clusters, std::uint64_t* bitmap);
// Writes the set bits' numbers, ascending, to ids (room for all) and clears the bitmap [words]. Returns how many.
std::int64_t take_tokens(std::uint64_t* bitmap, std::int64_t words, std::int32_t* ids);

// The same stages in scalar code, double precision, sorts instead of histograms: the oracle.
namespace reference {
void score_centroids(const Query& query, int kv_head, const HeadTable& table, int first, int last, float* logits);
void half_variances(const Query& query, int kv_head, const HeadTable& table, float* h);
void estimate_masses(const HeadTable& table, int group, const float* logits, const float* h, const float* reference, float* mass,
                     float softcap = 0);
int choose(const HeadTable& table, int group, const float* mass, const float* fixed, const float* target, bool joint,
           std::uint8_t* chosen, std::int32_t* list, float* covered);
void tail_factors(const HeadTable& table, int group, const float* mass, const float* exact, std::span<const std::int32_t> chosen,
                  float* factor);
int choose_tail(const HeadTable& table, int group, const float* logits, const float* h, const float* reference,
                const float* total, const std::uint8_t* chosen, int limit, std::int32_t* list, float* weights, float softcap = 0,
                float loss_per_row = 0);
void add_tail(const HeadTable& table, int group, int v_head_dim, std::span<const std::int32_t> list, const float* weights,
              int weight_stride, const Partial& out);
void choose_paper(const Query& query, const KvView& kv, int kv_head, const HeadTable& table, const float* logits,
                  const float* fixed, const float* reference, const Options& options, std::uint64_t* bitmap, std::int64_t* budget,
                  float* estimated, PaperReport* report);
}  // namespace reference

}  // namespace tactic
