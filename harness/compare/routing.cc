#include "harness/compare/routing.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "harness/base/error.h"
#include "harness/compare/observed.h"
#include "harness/compare/tolerance.h"

namespace moe {
namespace {

// How far rounding may move a selection score against another: logits of size z are off by a few
// units of round-off of the dtype they are made in, and by what adding up their terms leaves (for
// terms of random sign about u |x| |g|); no score function is steeper than 1/4.
double RoutingBound(const Manifest& manifest, const reference::Problem& problem) {
  const reference::Matrix logits = problem.x_TD * problem.gate_ED.transpose();
  const double largest = logits.size() > 0 ? logits.cwiseAbs().maxCoeff() : 0.0;
  const reference::Rounding rounding = RoundingOf(manifest.dtype, manifest.casts, 1);
  const double unit = std::max(rounding.store, rounding.logits);
  return 2.0 * unit * (1.0 + largest) + rounding.accumulate *
                                            problem.x_TD.rowwise().norm().maxCoeff() *
                                            problem.gate_ED.rowwise().norm().maxCoeff();
}

}  // namespace

RoutingComparison CompareRouting(const Dump& dump, const reference::Problem& problem) {
  const Manifest& manifest = dump.manifest;
  const reference::Routing own_routing = reference::Route(
      manifest.model, problem.x_TD, problem.gate_ED, problem.gate_bias_E, problem.expert_bias_E);
  RoutingComparison comparison{.smallest_margin = own_routing.margin_T.minCoeff()};
  if (!manifest.tensors.contains("topk_expert_TK")) {
    comparison.notes.emplace_back(
        "topk_expert_TK was not dumped, so routing was not compared on its own");
    return comparison;
  }
  const ObservedTensor observed(dump, "topk_expert_TK");
  const double bound = RoutingBound(manifest, problem);
  Finding finding{.tensor = "topk_expert_TK"};
  reference::Routing routing = own_routing;
  std::int64_t flips = 0;
  std::int64_t ties = 0;
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
      if (own_routing.margin_T(token) <= bound) {
        ++ties;
        continue;
      }
      ++flips;
      if (finding.verdict == Verdict::kPass) {
        finding.verdict = Verdict::kFail;
        finding.explanation.cause = Cause::kUnexplained;
        finding.text =
            fmt::format("token {} goes to experts {}, not {}", token, fmt::join(chosen, ", "),
                        fmt::join(own.begin(), own.end(), ", "));
        finding.evidence.push_back(
            fmt::format("what   its margin {:.1e} is clear of the rounding bound {:.1e}",
                        own_routing.margin_T(token), bound));
      }
      finding.ranks.insert(finding.ranks.end(), holder.ranks.begin(), holder.ranks.end());
    }
  }
  std::sort(finding.ranks.begin(), finding.ranks.end());
  finding.ranks.erase(std::unique(finding.ranks.begin(), finding.ranks.end()), finding.ranks.end());
  finding.error = static_cast<double>(flips) / static_cast<double>(manifest.model.tokens);
  if (flips + ties > 0) {
    comparison.observed_routing = routing;
    comparison.notes.push_back(
        fmt::format("{} tokens are routed otherwise than in the reference ({} of them "
                    "ties within rounding); the gradients are judged with the observed "
                    "routing",
                    flips + ties, ties));
  }
  comparison.finding = std::move(finding);
  return comparison;
}

std::optional<Finding> CompareCounts(const Dump& dump,
                                     const std::vector<std::int64_t>& tokens_per_expert_E) {
  if (!dump.manifest.tensors.contains("tokens_per_expert_E")) {
    return std::nullopt;
  }
  const ObservedTensor observed(dump, "tokens_per_expert_E");
  Finding finding{.tensor = "tokens_per_expert_E"};
  for (const ObservedTensor::Holder& holder : observed.holders()) {
    const std::vector<double> got = observed.ReadUnit(holder, 0);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::int64_t expert = holder.slice.index[0][i];
      const auto wanted =
          static_cast<double>(tokens_per_expert_E[static_cast<std::size_t>(expert)]);
      if (got[i] == wanted) {  // counts are whole numbers, exact in double
        continue;
      }
      if (finding.verdict == Verdict::kPass) {
        finding.verdict = Verdict::kFail;
        finding.explanation.cause = Cause::kUnexplained;
        finding.text = fmt::format("expert {} counts {} tokens, not {}", expert, got[i], wanted);
      }
      finding.error = std::max(finding.error, std::abs(got[i] - wanted) / std::max(1.0, wanted));
      finding.ranks.insert(finding.ranks.end(), holder.ranks.begin(), holder.ranks.end());
    }
  }
  std::sort(finding.ranks.begin(), finding.ranks.end());
  finding.ranks.erase(std::unique(finding.ranks.begin(), finding.ranks.end()), finding.ranks.end());
  return finding;
}

}  // namespace moe
