// What rounding does to a case: its clean runs over layouts, seeds and backends, measured against
// the error model.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "harness/base/dtype.h"
#include "harness/inputs/generator.h"
#include "harness/layout/step_graph.h"
#include "harness/measure/measured.h"
#include "harness/spec/case_spec.h"

namespace moe {

// What one run measures, by tensor.
using Figures = std::map<std::string, TensorFigures>;

// Measures one clean run of a case under the graph's layout.
using CleanRun = std::function<Figures(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                                       const InputGenerator& inputs, const std::string& backend)>;

// That of the built-in step, without golden tolerances. Throws Error: a run that is in error,
// skipped or vacuous.
Figures RunClean(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                 const InputGenerator& inputs, const std::string& backend);

// The largest of all clean runs, for one tensor in one dtype. Members as those of
// TensorFigures.
struct CleanRuns {
  double bound = 0.0;
  double worst_case = 0.0;
  double noise = 0.0;  // of other seeds in units of the bound there, what such luck would do here
  double ratio = 0.0;
  double worst_case_ratio = 0.0;
  double scale_ratio = 0.0;
  double detectable_scale = 0.0;
};

// By tensor: every layout of the case as threads, the first one as processes too, since another
// backend adds in another order, and every layout with two more seeds. Throws what `run` throws.
std::map<std::string, CleanRuns> MeasureCleanRuns(const CaseSpec& spec, Dtype dtype,
                                                  const InputGenerator& inputs,
                                                  const CleanRun& run = RunClean);

// Throws Error(spec.path, ...) where a clean run exceeded a bound, for then the error model is
// wrong, and no tolerance made from it means anything.
void CheckCleanRuns(const CaseSpec& spec, Dtype dtype,
                    const std::map<std::string, CleanRuns>& clean);

}  // namespace moe
