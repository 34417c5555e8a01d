#include "harness/measure/routing.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>

#include "harness/base/error.h"
#include "harness/measure/observed.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

// Whether rounding may have made the choice `chosen` of a token's own: every expert that is chosen
// instead of another is within the two bounds of it. A choice of groups has no such pairs; there
// the token's margin must be in doubt.
bool IsTie(const Model& model, const reference::Routing& own, Eigen::Index token,
           const std::set<std::int64_t>& chosen) {
  if (model.limited_groups < model.expert_groups) {
    return own.margin_T[token] <= own.margin_bound_T[token];
  }
  const auto own_experts = own.topk_expert_TK.row(token);
  const std::set<std::int64_t> wanted(own_experts.begin(), own_experts.end());
  for (const std::int64_t left : wanted) {
    for (const std::int64_t taken : chosen) {
      if (!chosen.contains(left) && !wanted.contains(taken) &&
          own.selection_TE(token, left) - own.selection_TE(token, taken) >
              own.selection_bound_TE(token, left) + own.selection_bound_TE(token, taken)) {
        return false;
      }
    }
  }
  return true;
}

// The token whose choice is the least beyond doubt.
Eigen::Index LeastDecided(const reference::Routing& own) {
  Eigen::Index least = 0;
  for (Eigen::Index token = 1; token < own.margin_T.size(); ++token) {
    if (own.margin_T[token] - own.margin_bound_T[token] <
        own.margin_T[least] - own.margin_bound_T[least]) {
      least = token;
    }
  }
  return least;
}

RoutingMargin MarginOf(const reference::Routing& own, Eigen::Index token) {
  return {token, own.margin_T[token], own.margin_bound_T[token]};
}

void SortUnique(std::vector<std::int64_t>& ranks) {
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
}

}  // namespace

RoutingComparison CompareRouting(const Dump& dump, const reference::Problem& problem,
                                 const RoutingRules& rules) {
  const Manifest& manifest = dump.manifest;
  const reference::Routing own_routing = reference::Route(
      manifest.model, problem.x_TD, problem.gate_ED, problem.gate_bias_E, problem.expert_bias_E,
      rules.is_exact ? reference::Rounding{} : RoundingOf(manifest));
  const Eigen::Index least = LeastDecided(own_routing);
  const bool in_doubt = own_routing.margin_T[least] <= own_routing.margin_bound_T[least];
  if (in_doubt && rules.must_be_decided) {
    throw Error(
        dump.name,
        fmt::format("leaves the choice of experts to rounding in {} (token {}: margin {:.2e}, "
                    "rounding may take {:.2e}); use another seed, fewer experts or a smaller top_k",
                    ToText(manifest.dtype), least, own_routing.margin_T[least],
                    own_routing.margin_bound_T[least]));
  }
  RoutingComparison comparison{.smallest_margin = own_routing.margin_T.minCoeff()};
  if (!manifest.tensors.contains(tensor::topk_expert_TK)) {
    if (in_doubt) {
      comparison.in_doubt = MarginOf(own_routing, least);
    }
    return comparison;
  }
  comparison.compared = true;
  const ObservedTensor observed(dump, tensor::topk_expert_TK);
  reference::Routing routing = own_routing;
  std::set<std::int64_t> flipped;
  std::set<std::int64_t> tied;
  for (const ObservedTensor::Holder& holder : observed.holders()) {
    for (std::int64_t row = 0; row < observed.UnitsOf(holder); ++row) {
      const std::int64_t token = observed.GlobalUnit(holder, row);
      const std::vector<double> got = observed.ReadUnit(holder, row);
      const std::set<std::int64_t> chosen(got.begin(), got.end());
      if (chosen.size() != got.size() || *chosen.begin() < 0 ||
          *chosen.rbegin() >= manifest.model.experts) {
        throw Error(dump.name,
                    fmt::format("topk_expert_TK of token {} on rank {} is [{}]; it must name {} "
                                "different experts from 0 to {}",
                                token, holder.ranks.front(), fmt::join(got, ", "),
                                manifest.model.top_k, manifest.model.experts - 1));
      }
      const auto own = own_routing.topk_expert_TK.row(token);
      if (chosen == std::set<std::int64_t>(own.begin(), own.end())) {
        continue;
      }
      for (std::size_t k = 0; k < got.size(); ++k) {
        routing.topk_expert_TK(token, static_cast<Eigen::Index>(k)) =
            static_cast<std::int64_t>(got[k]);
      }
      if (IsTie(manifest.model, own_routing, token, chosen)) {
        tied.insert(token);
        continue;
      }
      flipped.insert(token);
      if (!comparison.first_flip) {
        comparison.first_flip = {
            MarginOf(own_routing, token), {chosen.begin(), chosen.end()}, {own.begin(), own.end()}};
      }
      comparison.ranks.insert(comparison.ranks.end(), holder.ranks.begin(), holder.ranks.end());
    }
  }
  SortUnique(comparison.ranks);
  comparison.tied = std::ssize(tied);
  comparison.flipped = std::ssize(flipped);
  if (!tied.empty()) {
    comparison.first_tie = MarginOf(own_routing, *tied.begin());
  }
  if (!tied.empty() || !flipped.empty()) {
    comparison.observed_routing = routing;
  }
  return comparison;
}

std::optional<CountComparison> CompareCounts(const Dump& dump,
                                             const std::vector<std::int64_t>& tokens_per_expert_E) {
  if (!dump.manifest.tensors.contains(tensor::tokens_per_expert_E)) {
    return std::nullopt;
  }
  const ObservedTensor observed(dump, tensor::tokens_per_expert_E);
  CountComparison comparison;
  for (const ObservedTensor::Holder& holder : observed.holders()) {
    const std::vector<double> got = observed.ReadUnit(holder, 0);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::int64_t expert = holder.slice.index[0][i];
      const auto wanted =
          static_cast<double>(tokens_per_expert_E[static_cast<std::size_t>(expert)]);
      if (got[i] == wanted) {  // counts are whole numbers, exact in double
        continue;
      }
      if (!comparison.first) {
        comparison.first = {expert, got[i], wanted};
      }
      const double error = std::abs(got[i] - wanted) / std::max(1.0, wanted);
      comparison.error = std::max(comparison.error, std::isfinite(error) ? error : INFINITY);
      comparison.ranks.insert(comparison.ranks.end(), holder.ranks.begin(), holder.ranks.end());
    }
  }
  SortUnique(comparison.ranks);
  return comparison;
}

}  // namespace moe
