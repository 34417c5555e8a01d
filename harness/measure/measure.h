// Measures a dump: routing first, then every unit of every rank against the reference, replicas,
// the scale of each tensor as a whole, and what was tested at all. Sees nothing but the dump and
// the problem; says numbers and no causes (explain/ has those, report/ the words).
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "harness/dump/dump.h"
#include "harness/layout/tensor_source.h"
#include "harness/measure/measured.h"
#include "harness/measure/routing.h"
#include "harness/measure/tensor_meter.h"

namespace moe {

// What a result may be off by at most, in its least accurate slice, with the casts that the
// producer declares and without them. Relative.
struct CastEffect {
  std::string tensor;
  double with = 0.0;
  double without = 0.0;
};

// The dump that was measured must outlive it.
struct Measured {
  const Manifest* manifest = nullptr;
  reference::Problem problem;
  // The reference's choice of experts or, where the dump's was another one, that.
  reference::Routing routing;
  RoutingComparison routing_comparison;
  std::vector<std::int64_t> tokens_per_expert_E;
  std::optional<CountComparison> counts;  // empty where they were not dumped
  std::optional<ObservedTensor> observed_counts;
  std::deque<MeasuredTensor> tensors;   // those of the dump, in the order of ResultsOf
  std::vector<std::string> not_dumped;  // results that are not in it, in that order
  // Experts without a token, and not on purpose.
  std::vector<std::int64_t> idle_experts;
  std::vector<CastEffect> cast_effects;  // of a foreign dump with coarser casts

  const MeasuredTensor* Find(const std::string& tensor) const;  // nullptr where it was not dumped
};

// Throws Error(dump.name, ...) for a dump that cannot be measured at all: values stored more
// coarsely than the step claims, a problem that overflows, one that is not its golden file's, and
// what CompareRouting throws.
Measured Measure(const Dump& dump, const TensorSource& source, const MeasureOptions& options);

}  // namespace moe
