// One step of one layer on exact weights: clusters as an arm makes them, their order, what the arm takes and attends.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "eval_capture.h"
#include "select/select.h"
#include "sequence/sequence.h"

namespace tactic::program {

// The clusters of one layer as an arm makes them from the prompt.
class LayerClusters {
 public:
  LayerClusters(const WindowAttention& window, int layer, const Options& options, int threads);
  const Sequence& sequence() const { return sequence_; }
  const LayerIndex& index() const { return sequence_.layer(0); }
  Team& team() { return *team_; }
  Workspace& workspace() { return *workspace_; }

 private:
  std::unique_ptr<Team> team_;
  WorkspacePtr workspace_;
  Sequence sequence_;
};

// Tokens that a step attends without choosing (sinks, recent ones, generated ones), then those of the clusters in the order in
// which the method would take them: `paper` by the centroid's logit, `tactic` by the estimated density.
struct TokenOrder {
  std::vector<std::int32_t> tokens;
  std::int64_t always = 0;             // of `tokens`, first ones
  std::vector<std::int32_t> clusters;  // in that order
  std::vector<std::int64_t> ends;      // place in `tokens` behind each cluster
};

// Fewest leading tokens of an order whose weights reach `wanted`; all if none do.
std::int64_t tokens_for(std::span<const std::int32_t> order, std::span<const double> weights, double wanted);

// Tokens by exact weight, heaviest first; of equals the earlier one.
std::vector<std::int32_t> exact_order(std::span<const double> weights);

// What the select room knows of one KV head in one step.
struct HeadEstimate {
  std::vector<float> logits, mass, half, exact;  // [G, stride], [G, stride], [G, parts], [G, stride]
  std::vector<float> fixed, reference;           // [G] of the always-attended tokens; the scale of masses
  std::vector<std::uint8_t> chosen;
  std::vector<std::int32_t> list;
};

// One clustering of a layer and what its arms share in a step.
class ClusteredStep {
 public:
  ClusteredStep(const WindowAttention& window, int layer, int step, LayerClusters& clusters, const Options& options)
      : window_(window),
        clusters_(clusters),
        options_(options),
        kv_(window.kv(layer, window.prompt_tokens + step + 1)),
        query_{window.query(layer, step, 0), window.shape, window.params} {}

  const HeadTable& table(int kv_head) const { return clusters_.index().tables[static_cast<std::size_t>(kv_head)]; }
  const KvView& kv() const { return kv_; }
  HeadEstimate estimate(int kv_head, const std::vector<std::vector<double>>& weights) const;
  TokenOrder order(const HeadEstimate& head, int kv_head, int g) const;
  // Clustered tokens that query head g alone takes for P.
  std::vector<std::int64_t> budgets(HeadEstimate& head, int kv_head, double mass,
                                    const std::vector<std::vector<double>>& weights) const;
  // Attended by each KV head for P, as a bitmap; [kv_heads] counts.
  std::vector<std::int64_t> attend(double mass, std::vector<std::uint64_t>& bits) const;

 private:
  std::int64_t budget_alone(HeadEstimate& head, int kv_head, int g, double mass, std::span<const double> weights) const;

  const WindowAttention& window_;
  LayerClusters& clusters_;
  const Options& options_;
  KvView kv_;
  Query query_;
};

}  // namespace tactic::program
