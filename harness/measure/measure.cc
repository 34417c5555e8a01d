#include "harness/measure/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "harness/base/error.h"
#include "harness/base/tensors.h"
#include "harness/measure/problem.h"
#include "harness/measure/tolerance.h"

namespace moe {
namespace {

using reference::Estimate;
using reference::Matrix;

using Meters = std::map<std::string, TensorMeter>;
using OnEstimate =
    std::function<void(const std::string& name, std::int64_t expert, const Estimate& want)>;

// What is stored more coarsely than the step claims to compute has an error that no bound here
// knows of.
void CheckStoredDtype(const Dump& dump, const std::string& name) {
  const Manifest& manifest = dump.manifest;
  const auto cast = manifest.casts.find(name);
  const double declared = std::max(UnitRoundoff(manifest.dtype),
                                   cast == manifest.casts.end() ? 0.0 : UnitRoundoff(cast->second));
  for (std::int64_t rank = 0; rank < manifest.WorldSize(); ++rank) {
    const Dtype stored = dump.Local(rank, name).dtype;
    if (UnitRoundoff(stored) > declared) {
      throw Error(
          dump.name,
          fmt::format("{} of rank {} is stored in {}, which is coarser than the dtype of "
                      "the step, {}; store it in {} or declare it under casts",
                      name, rank, ToText(stored), ToText(manifest.dtype), ToText(manifest.dtype)));
    }
  }
}

void RequireFinite(const Dump& dump, const std::string& name, const Estimate& want) {
  // Squares are taken of everything.
  if (!(want.value.size() == 0 || want.value.cwiseAbs().maxCoeff() < kAbsurd)) {
    throw Error(dump.name, fmt::format("has a problem whose {} overflows in float64, so that "
                                       "nothing can be compared; use inputs of ordinary size",
                                       name));
  }
}

// The tensor as it is written, where that is coarser than it is computed: one more rounding.
Estimate AsStored(const Estimate& computed, double unit) {
  Estimate stored = computed;
  const Matrix rounding = unit * computed.value.cwiseAbs();
  stored.deviation = (computed.deviation.cwiseAbs2() + rounding.cwiseAbs2()).cwiseSqrt();
  if (computed.worst_case.size() > 0) {
    stored.worst_case += rounding;
  }
  if (computed.projection_variance > 0.0) {
    stored.projection_variance += rounding.cwiseProduct(computed.value).squaredNorm();
  }
  return stored;
}

// The reference's results with the bounds of a step as `manifest` describes it: each expert's
// gradients as they come, then the whole tensors, whose expert is -1.
reference::StepResult RunReference(const Manifest& manifest, const Measured& measured,
                                   bool worst_case, const OnEstimate& on_estimate) {
  const auto hand_over = [&](const std::string& name, std::int64_t expert,
                             const Estimate& computed) {
    const double unit = StoredUnit(manifest, name);
    on_estimate(name, expert, unit > 0.0 ? AsStored(computed, unit) : computed);
  };
  const auto& observed_routing = measured.routing_comparison.observed_routing;
  const reference::StepOptions step{
      .rounding = RoundingOf(manifest),
      .worst_case = worst_case,
      .forced_routing = observed_routing ? &*observed_routing : nullptr};
  const auto hand_over_all = [&](const reference::Results& results, std::int64_t expert) {
    for (const auto& [name, estimate] : results) {
      hand_over(name, expert, estimate);
    }
  };
  reference::StepResult result = reference::RunStep(
      manifest.model, measured.problem, step,
      [&](const reference::ExpertGradients& of) { hand_over_all(of.results, of.expert); });
  hand_over_all(result.results, /*expert=*/-1);
  return result;
}

// Of what was dumped.
void AddEstimate(Meters& meters, const std::string& name, std::int64_t expert,
                 const Estimate& want) {
  const auto found = meters.find(name);
  if (found == meters.end()) {
    return;
  }
  TensorMeter& meter = found->second;
  if (expert >= 0) {
    meter.AddUnit(expert, want.value, want.deviation, want.worst_case);
    meter.BoundScale(want);
    return;
  }
  const bool has_units = meter.observed().HasUnits();
  if (!has_units || want.projection_variance > 0.0) {
    meter.BoundScale(want);
  }
  if (!has_units) {
    meter.AddUnit(0, want.value, want.deviation, want.worst_case);
    return;
  }
  for (Eigen::Index unit = 0; unit < want.value.rows(); ++unit) {
    const Estimate row{want.value.row(unit), want.deviation.row(unit),
                       want.worst_case.size() > 0 ? Matrix(want.worst_case.row(unit)) : Matrix()};
    meter.AddUnit(unit, row.value, row.deviation, row.worst_case);
    if (want.projection_variance == 0.0) {
      meter.BoundScale(row);
    }
  }
}

// Against what everything might be off by had the producer declared no coarser cast; takes a second
// run of the reference.
std::vector<CastEffect> EffectsOfCasts(const Dump& dump, const Measured& measured,
                                       const MeasureOptions& options) {
  Dump plain = dump;
  for (const auto& [cast, dtype] : CoarserCasts(dump.manifest)) {
    plain.manifest.casts.erase(cast);
  }
  Meters meters;
  for (const MeasuredTensor& tensor : measured.tensors) {
    meters.try_emplace(tensor.name(), plain, tensor.name(), options);
  }
  RunReference(plain.manifest, measured, /*worst_case=*/false,
               [&](const std::string& name, std::int64_t expert, const Estimate& estimate) {
                 AddEstimate(meters, name, expert, estimate);
               });
  std::vector<CastEffect> effects;
  for (const MeasuredTensor& tensor : measured.tensors) {
    if (tensor.figures.bound > 0.0) {
      effects.push_back({.tensor = tensor.name(),
                         .with = kSafety * tensor.figures.bound,
                         .without = kSafety * meters.at(tensor.name()).bound()});
    }
  }
  return effects;
}

// The value of a whole tensor, or of its slice for an expert.
void AddSums(ReferenceSums& sums, const std::string& name, std::int64_t expert,
             const Matrix& value) {
  const std::int64_t first = expert < 0 ? 0 : expert * value.size();
  sums.Add(name, {value.data(), static_cast<std::size_t>(value.size())}, first);
}

std::vector<std::int64_t> IdleExperts(const Measured& measured, const MeasureOptions& options) {
  std::vector<std::int64_t> idle;
  for (std::size_t e = 0; e < measured.tokens_per_expert_E.size(); ++e) {
    const auto expert = static_cast<std::int64_t>(e);
    const auto& on_purpose = options.idle_experts;
    if (measured.tokens_per_expert_E[e] == 0 &&
        std::find(on_purpose.begin(), on_purpose.end(), expert) == on_purpose.end()) {
      idle.push_back(expert);
    }
  }
  return idle;
}

}  // namespace

const MeasuredTensor* Measured::Find(const std::string& tensor) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const MeasuredTensor& t) { return t.name() == tensor; });
  return found == tensors.end() ? nullptr : &*found;
}

Measured Measure(const Dump& dump, const TensorSource& source, const MeasureOptions& options) {
  const Manifest& manifest = dump.manifest;
  const bool is_exact = AllowsNothing(manifest, options);
  Measured measured{.manifest = &manifest, .problem = MakeProblem(manifest.model, source)};
  measured.routing_comparison = CompareRouting(
      dump, measured.problem, {.must_be_decided = !options.is_foreign, .is_exact = is_exact});
  Meters meters;
  for (const TensorInfo& result : ResultsOf(manifest.model)) {
    if (manifest.tensors.contains(result.name)) {
      CheckStoredDtype(dump, result.name);
      meters.try_emplace(result.name, dump, result.name, options);
    } else {
      measured.not_dumped.push_back(result.name);
    }
  }
  // With another choice of experts than the reference's own its results are no longer those.
  const bool has_golden =
      options.golden != nullptr && !measured.routing_comparison.observed_routing;
  ReferenceSums sums;
  reference::StepResult want =
      RunReference(manifest, measured, options.worst_case,
                   [&](const std::string& name, std::int64_t expert, const Estimate& estimate) {
                     RequireFinite(dump, name, estimate);
                     if (has_golden) {
                       AddSums(sums, name, expert, estimate.value);
                     }
                     AddEstimate(meters, name, expert, estimate);
                   });
  if (has_golden) {
    CheckProblem(*options.golden, sums, want.routing.logit_margin_T.minCoeff(), dump.name);
  }
  measured.routing = std::move(want.routing);
  measured.tokens_per_expert_E = std::move(want.tokens_per_expert_E);
  measured.counts = CompareCounts(dump, measured.tokens_per_expert_E);
  if (measured.counts) {
    measured.observed_counts.emplace(dump, tensor::tokens_per_expert_E);
  }
  for (const TensorInfo& result : ResultsOf(manifest.model)) {
    if (const auto meter = meters.find(result.name); meter != meters.end()) {
      measured.tensors.push_back(std::move(meter->second).Finish());
    }
  }
  measured.idle_experts = IdleExperts(measured, options);
  if (options.is_foreign && !CoarserCasts(manifest).empty() && !is_exact) {
    measured.cast_effects = EffectsOfCasts(dump, measured, options);
  }
  return measured;
}

}  // namespace moe
