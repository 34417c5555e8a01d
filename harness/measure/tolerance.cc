#include "harness/measure/tolerance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "harness/base/tensors.h"
#include "harness/layout/step_graph.h"

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
  for (const auto& [cast_of, coarse] : casts) {
    const double coarse_unit = UnitRoundoff(coarse);
    if (cast_of == tensor::scores_TE || cast_of == tensor::logits_TE) {
      rounding.logits = std::max(rounding.logits, coarse_unit);
    }
    if (cast_of == tensor::scores_TE) {
      rounding.scores = std::max(rounding.scores, coarse_unit);
    }
    if (coarse_unit > unit) {
      const reference::Cast cast{
          .unit = coarse_unit, .accumulate = std::min(coarse_unit, UnitRoundoff(Dtype::kFloat32))};
      if (cast_of == tensor::logits_TE) {
        rounding.gate = cast;
      } else if (cast_of == tensor::routed_in_ND) {
        rounding.routed_in = cast;
      } else if (cast_of == tensor::routed_out_ND) {
        rounding.routed_out = cast;
      }
    }
  }
  return rounding;
}

namespace {

// Of a problem's tensor it is not known where it goes, and of shares not how large they are. Any
// other tensor is a finished result, or one without rounding (counts, experts' numbers), or is not
// there.
bool WidensAll(const Manifest& manifest, const std::string& tensor) {
  const auto is_among = [&](const std::vector<TensorInfo>& tensors) {
    return std::any_of(tensors.begin(), tensors.end(),
                       [&](const TensorInfo& one) { return one.name == tensor; });
  };
  return is_among(InputsOf(manifest.model)) ||
         (is_among(ResultsOf(manifest.model)) && manifest.tensors.contains(tensor) &&
          IsClaimed(manifest, tensor, Placement::Kind::kPartial));
}

}  // namespace

reference::Rounding RoundingOf(const Manifest& manifest) {
  reference::Rounding rounding = RoundingOf(manifest.dtype, manifest.casts, manifest.layout);
  for (const auto& [cast, dtype] : CoarserCasts(manifest)) {
    if (WidensAll(manifest, cast)) {
      rounding.store = std::max(rounding.store, UnitRoundoff(dtype));
      rounding.reduce = std::max(rounding.reduce, UnitRoundoff(dtype));
    }
  }
  if (!manifest.casts.contains(tensor::scores_TE) && !manifest.casts.contains(tensor::logits_TE)) {
    rounding.logits = std::max(rounding.logits, rounding.store);
  }
  return rounding;
}

std::map<std::string, Dtype> CoarserCasts(const Manifest& manifest) {
  std::map<std::string, Dtype> coarser = manifest.casts;
  std::erase_if(coarser, [&](const auto& cast) {
    return UnitRoundoff(cast.second) <= UnitRoundoff(manifest.dtype);
  });
  return coarser;
}

std::map<std::string, Dtype> CastsReaching(const Manifest& manifest, const std::string& result) {
  std::map<std::string, Dtype> reaching = CoarserCasts(manifest);
  std::erase_if(reaching, [&](const auto& cast) {
    return IsStage(cast.first) ? !IsReachedBy(cast.first, result, manifest.model)
                               : cast.first != result && !WidensAll(manifest, cast.first);
  });
  return reaching;
}

double StoredUnit(const Manifest& manifest, const std::string& result) {
  const auto coarser = CoarserCasts(manifest);
  const auto cast = coarser.find(result);
  return cast != coarser.end() && !WidensAll(manifest, result) ? UnitRoundoff(cast->second) : 0.0;
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
