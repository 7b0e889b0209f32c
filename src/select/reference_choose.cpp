// The choice for the query heads of a KV head, with full sorts and double sums: the oracle (estimation.md 2).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "select/select.h"

namespace tactic::reference {
namespace {

using Row = std::vector<double>;

// What is left to choose from, and the heads that lack mass.
struct Problem {
  std::vector<int> column;
  Row size;               // [columns]
  std::vector<Row> mass;  // [heads][columns], shares of the head's total
  Row need;               // [heads] share that is missing
  Row allowed;            // [heads] 1 - target
  Row free;               // [heads] share of all columns
};

struct Prefix {
  std::vector<int> taken;  // places in Problem::column
  Row sum;                 // [heads]
  double tokens = 0;
  double threshold = 0;  // score of the last taken
};

// The shortest prefix of the descending order of scores in which each head of `heads` has what it needs.
Prefix cut(const Problem& problem, const Row& score, const std::vector<std::size_t>& heads) {
  std::vector<int> order;
  for (std::size_t i = 0; i < score.size(); ++i) {
    if (score[i] > 0) order.push_back(static_cast<int>(i));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)]; });
  Prefix prefix;
  prefix.sum.assign(problem.mass.size(), 0);
  for (const int place : order) {
    const auto i = static_cast<std::size_t>(place);
    prefix.taken.push_back(place);
    prefix.tokens += problem.size[i];
    prefix.threshold = score[i];
    for (std::size_t a = 0; a < problem.mass.size(); ++a) prefix.sum[a] += problem.mass[a][i];
    if (std::all_of(heads.begin(), heads.end(), [&](std::size_t a) { return prefix.sum[a] >= problem.need[a]; })) break;
  }
  return prefix;
}

Row weighted_density(const Problem& problem, const Row& price) {
  Row score(problem.size.size(), 0);
  for (std::size_t a = 0; a < price.size(); ++a) {
    for (std::size_t i = 0; i < score.size(); ++i) score[i] += price[a] * problem.mass[a][i] / problem.size[i];
  }
  return score;
}

Prefix own_cut(const Problem& problem, std::size_t a) {
  Row alone(problem.mass.size(), 0);
  alone[a] = 1;
  return cut(problem, weighted_density(problem, alone), {a});
}

std::vector<int> solve_jointly(const Problem& problem) {
  std::vector<std::size_t> heads(problem.mass.size());
  std::iota(heads.begin(), heads.end(), std::size_t{0});
  Row price;
  for (const std::size_t a : heads) price.push_back(1 / std::max(own_cut(problem, a).threshold, 1e-300));
  Prefix best;
  for (int round = 0; round < 4; ++round) {
    Prefix prefix = cut(problem, weighted_density(problem, price), heads);
    for (const std::size_t a : heads) {
      const double excess = (problem.free[a] - prefix.sum[a]) / std::max(problem.allowed[a], 1e-9);
      price[a] *= std::pow(std::clamp(excess, 1e-3, 1.0), 2);
    }
    if (round == 0 || prefix.tokens < best.tokens) best = std::move(prefix);
  }
  std::vector<int> kept;  // without what every head can spare, the last taken first
  for (auto place = best.taken.rbegin(); place != best.taken.rend(); ++place) {
    const auto i = static_cast<std::size_t>(*place);
    const bool spare = std::all_of(heads.begin(), heads.end(),
                                   [&](std::size_t a) { return best.sum[a] - problem.mass[a][i] >= problem.need[a]; });
    for (const std::size_t a : heads) best.sum[a] -= spare ? problem.mass[a][i] : 0.0;
    if (!spare) kept.push_back(*place);
  }
  return kept;
}

std::vector<int> solve_apart(const Problem& problem) {
  std::vector<int> all;
  for (std::size_t a = 0; a < problem.mass.size(); ++a) {
    const Prefix prefix = own_cut(problem, a);
    all.insert(all.end(), prefix.taken.begin(), prefix.taken.end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

}  // namespace

int choose(const HeadTable& table, int group, const float* mass, const float* fixed, const float* target, bool joint,
           std::uint8_t* chosen, std::int32_t* list, float* covered) {
  const auto mass_of = [&](int g, int c) { return static_cast<double>(mass[static_cast<std::int64_t>(g) * table.stride + c]); };
  Problem problem;
  for (int c = 0; c < table.count; ++c) {
    if (chosen[c] != 0) continue;
    problem.column.push_back(c);
    problem.size.push_back(static_cast<double>(table.size[static_cast<std::size_t>(c)]));
  }
  bool everything = false;
  Row total;
  for (int g = 0; g < group; ++g) {
    double held = static_cast<double>(fixed[g]);
    double free = 0;
    for (int c = 0; c < table.count; ++c) (chosen[c] != 0 ? held : free) += mass_of(g, c);
    total.push_back(held + free);
    everything = everything || !(total.back() > 0) || !std::isfinite(total.back());
    const double need = static_cast<double>(target[g]) - held / total.back();
    if (!(need > 0)) continue;
    Row share;
    for (const int c : problem.column) share.push_back(mass_of(g, c) / total.back());
    problem.mass.push_back(std::move(share));
    problem.need.push_back(need);
    problem.allowed.push_back(1 - static_cast<double>(target[g]));
    problem.free.push_back(free / total.back());
  }
  std::vector<int> places(problem.column.size());
  std::iota(places.begin(), places.end(), 0);
  if (!everything) places = problem.mass.empty() ? std::vector<int>{} : joint ? solve_jointly(problem) : solve_apart(problem);
  int added = 0;
  for (const int place : places) {
    const int c = problem.column[static_cast<std::size_t>(place)];
    chosen[c] = 1;
    if (list != nullptr) list[added] = c;
    ++added;
  }
  for (int g = 0; g < group && covered != nullptr; ++g) {
    double held = static_cast<double>(fixed[g]);
    for (int c = 0; c < table.count; ++c) held += chosen[c] != 0 ? mass_of(g, c) : 0.0;
    covered[g] = everything ? 1.0f : static_cast<float>(held / total[static_cast<std::size_t>(g)]);
  }
  return added;
}

}  // namespace tactic::reference
