#include "harness/compare/tolerance.h"

#include <fmt/format.h>

#include <algorithm>

namespace moe {

reference::Rounding RoundingOf(Dtype dtype, const std::map<std::string, Dtype>& casts,
                               std::int64_t world_size) {
  const double unit = UnitRoundoff(dtype);
  const double fine = std::min(unit, UnitRoundoff(Dtype::kFloat32));
  reference::Rounding rounding{.store = unit,
                               .accumulate = fine,
                               .logits = fine,
                               .scores = fine,
                               .reduce = unit,
                               .reduce_terms = world_size};
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

std::string DescribeRounding(Dtype dtype) {
  return fmt::format(
      "{} standard deviations of the rounding error of a step that stores in {} (u = {:.2e}), "
      "accumulates and scores in {}, and adds ranks' shares in {}; independent errors, first "
      "order, propagated beside the reference",
      kSafety, ToText(dtype), UnitRoundoff(dtype), dtype == Dtype::kFloat64 ? "float64" : "float32",
      ToText(dtype));
}

}  // namespace moe
