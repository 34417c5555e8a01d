#include "tools/commands/clean_runs.h"

#include <fmt/format.h>

#include <algorithm>

#include "harness/base/error.h"
#include "harness/run_case.h"

namespace moe {
namespace {

// Clean runs of these many problems beside the case's own, each with another seed.
constexpr std::uint64_t kMoreSeeds = 2;

void AddRatios(CleanRuns& clean, const TensorFigures& measured) {
  clean.ratio = std::max(clean.ratio, measured.ratio);
  clean.worst_case_ratio = std::max(clean.worst_case_ratio, measured.worst_case_ratio);
  clean.scale_ratio = std::max(clean.scale_ratio, measured.scale_ratio);
}

// The case with another seed, so that noise is not that of one problem alone.
CaseSpec WithSeed(CaseSpec spec, std::uint64_t seed) {
  spec.numerics.seed = seed;
  return spec;
}

}  // namespace

Figures RunClean(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                 const InputGenerator& inputs, const std::string& backend) {
  const Result result = RunOnce(spec, graph, dtype, inputs, std::nullopt, nullptr,
                                {.backend = backend, .worst_case = true});
  if (result.verdict == Verdict::kError || result.verdict == Verdict::kSkipped) {
    throw Error(result.id, result.text);
  }
  if (result.verdict == Verdict::kVacuous) {
    throw Error(result.id,
                fmt::format("proves nothing in {}: {}", ToText(dtype), Headline(result)));
  }
  return result.judgement.measured;
}

std::map<std::string, CleanRuns> MeasureCleanRuns(const CaseSpec& spec, Dtype dtype,
                                                  const InputGenerator& inputs,
                                                  const CleanRun& run) {
  std::vector<StepGraph> graphs;
  for (const Layout& layout : spec.layouts) {
    graphs.push_back(GraphOf(spec, layout));
  }
  std::map<std::string, CleanRuns> tensors;
  const auto add = [&](const StepGraph& graph, const std::string& backend) {
    for (const auto& [tensor, measured] : run(spec, graph, dtype, inputs, backend)) {
      CleanRuns& clean = tensors[tensor];
      AddRatios(clean, measured);
      clean.bound = std::max(clean.bound, measured.bound);
      clean.worst_case = std::max(clean.worst_case, measured.worst_case);
      clean.noise = std::max(clean.noise, measured.error);
      clean.detectable_scale = std::max(clean.detectable_scale, measured.detectable_scale);
    }
  };
  for (const StepGraph& graph : graphs) {
    add(graph, "threads");
  }
  add(graphs.front(), "gloo");
  for (std::uint64_t more = 1; more <= kMoreSeeds; ++more) {
    const CaseSpec other = WithSeed(spec, spec.numerics.seed + more);
    const InputGenerator other_inputs(other);
    for (const StepGraph& graph : graphs) {
      for (const auto& [tensor, measured] : run(other, graph, dtype, other_inputs, "threads")) {
        CleanRuns& clean = tensors[tensor];
        AddRatios(clean, measured);
        clean.noise = std::max(clean.noise, measured.useful_ratio * clean.bound);
      }
    }
  }
  return tensors;
}

void CheckCleanRuns(const CaseSpec& spec, Dtype dtype,
                    const std::map<std::string, CleanRuns>& clean) {
  for (const auto& [tensor, runs] : clean) {
    const auto check = [&, &name = tensor](double ratio, const std::string& bound) {
      if (!(ratio <= 1.0)) {
        throw Error(spec.path,
                    fmt::format("clean runs in {} reach {:.2f} of the {} of {}; a bound that "
                                "correct steps exceed needs a better derivation, not a factor",
                                ToText(dtype), ratio, bound, name));
      }
    };
    check(runs.ratio, "bound of a slice");
    check(runs.worst_case_ratio, "worst-case bound of a slice");
    check(runs.scale_ratio, "bound of the scale");
  }
}

}  // namespace moe
