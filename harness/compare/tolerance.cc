#include "harness/compare/tolerance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace moe {

reference::Rounding RoundingOf(Dtype dtype, const std::map<std::string, Dtype>& casts,
                               const Layout& layout) {
  const double unit = UnitRoundoff(dtype);
  const double fine = std::min(unit, UnitRoundoff(Dtype::kFloat32));
  reference::Rounding rounding{.store = unit,
                               .accumulate = fine,
                               .logits = fine,
                               .scores = fine,
                               .reduce = unit,
                               .hidden_ranks = std::max(layout.tp, layout.etp),
                               .expert_ranks = std::max(layout.tp, layout.ep * layout.etp),
                               .token_ranks = layout.WorldSize()};
  for (const auto& [tensor, coarse] : casts) {
    const double coarse_unit = UnitRoundoff(coarse);
    if (tensor == "scores_TE" || tensor == "logits_TE") {
      rounding.logits = std::max(rounding.logits, coarse_unit);
    }
    if (tensor == "scores_TE") {
      rounding.scores = std::max(rounding.scores, coarse_unit);
    } else if (tensor != "logits_TE") {
      rounding.store = std::max(rounding.store, coarse_unit);
    }
  }
  return rounding;
}

reference::Rounding RoundingOf(const Manifest& manifest) {
  reference::Rounding rounding = RoundingOf(manifest.dtype, manifest.casts, manifest.layout);
  if (!manifest.casts.contains("scores_TE") && !manifest.casts.contains("logits_TE")) {
    rounding.logits = std::max(rounding.logits, rounding.store);
  }
  return rounding;
}

double DetectableScale(double tolerance, double bound) {
  return bound < 1.0 ? (tolerance + bound) / (1.0 - bound) : INFINITY;
}

std::string DescribeRounding(Dtype dtype) {
  return fmt::format(
      "{} times the probabilistic bound on the rounding of a step that stores in {} (u = {:.2e}), "
      "accumulates and scores in {}, and adds ranks' shares in {}; independent errors, first "
      "order, propagated beside the reference",
      kSafety, ToText(dtype), UnitRoundoff(dtype), dtype == Dtype::kFloat64 ? "float64" : "float32",
      ToText(dtype));
}

}  // namespace moe
