#include "tools/commands/fault_floors.h"

#include <fmt/format.h>

#include <algorithm>

#include "harness/run_case.h"
#include "harness/run_step.h"

namespace moe {
namespace {

// Every drop, repetition and mean of the sums that the tensors of `golden` are owed themselves. Of
// those inside the step must_catch says what they break.
std::vector<Fault> FaultsOf(const StepContract& contract, const Golden& golden) {
  std::vector<Fault> faults;
  for (const Reduction& reduction : contract.Owed()) {
    if (!golden.reference.contains(reduction.tensor)) {
      continue;
    }
    for (const Fault::Kind kind : {Fault::Kind::kDrop, Fault::Kind::kRepeat, Fault::Kind::kMean}) {
      faults.push_back({.kind = kind, .reduction = reduction});
    }
  }
  return faults;
}

}  // namespace

std::map<Dtype, Figures> RunFaulty(const CaseSpec& spec, const StepGraph& graph,
                                   const InputGenerator& inputs, const Fault& fault) {
  const std::vector<RankOutput> outputs = RunRanksOf(
      {.graph = &graph, .dtype = Dtype::kFloat64, .inputs = &inputs, .fault = fault}, "threads");
  std::map<Dtype, Figures> measured;
  for (const Dtype dtype : spec.numerics.dtypes) {
    const RunDump run = MakeRunDump(spec, graph, dtype, outputs);
    measured[dtype] = Judge(run.dump, inputs,
                            {.graph = &graph,
                             .calls = run.calls,
                             .idle_experts = spec.numerics.idle_experts,
                             .exact = spec.numerics.fill == Fill::kDyadic})
                          .measured;
  }
  return measured;
}

std::vector<std::string> AddFaultFloors(const CaseSpec& spec, const InputGenerator& inputs,
                                        Golden& golden, const FaultRun& run) {
  std::vector<std::string> remarks;
  for (const Layout& layout : spec.layouts) {
    const StepGraph graph = GraphOf(spec, layout);
    for (const Fault& fault : FaultsOf(graph.contract(), golden)) {
      const std::string& tensor = fault.reduction.tensor;
      for (const auto& [dtype, measurements] : run(spec, graph, inputs, fault)) {
        GoldenTolerance& entry = golden.tolerances.at(dtype).at(tensor);
        const TensorFigures& measured = measurements.at(tensor);
        if (measured.bound == 0.0 && entry.bound > 0.0) {
          continue;  // on this layout every slice is judged by its own bound
        }
        const double error = FaultStep(measured.error);
        if (error <= entry.tolerance) {
          remarks.push_back(fmt::format(
              "{} {}: '{}' changes {} by {:.1e} only, which its tolerance {:.1e} allows",
              CaseId(spec, layout), ToText(dtype), ToText(fault), tensor, error, entry.tolerance));
          continue;
        }
        entry.fault_floor = std::min(entry.fault_floor.value_or(error), error);
      }
    }
  }
  return remarks;
}

}  // namespace moe
