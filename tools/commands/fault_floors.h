// What planted faults do to a case's tensors: the least that a tolerance has to tell.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "harness/layout/fault.h"
#include "harness/measure/golden.h"
#include "tools/commands/clean_runs.h"

namespace moe {

// Measures one faulty run as each dtype of the case would judge it.
using FaultRun =
    std::function<std::map<Dtype, Figures>(const CaseSpec& spec, const StepGraph& graph,
                                           const InputGenerator& inputs, const Fault& fault)>;

// That of the built-in step in float64: what a fault does is no matter of rounding, and so is
// recorded without any. Throws Error.
std::map<Dtype, Figures> RunFaulty(const CaseSpec& spec, const StepGraph& graph,
                                   const InputGenerator& inputs, const Fault& fault);

// Plants a drop, a repetition and a mean at every sum that a tensor of `golden` is owed, under
// every layout of the case, and sets the fault floor of its tolerances to the smallest error
// (FaultStep). A fault that a tolerance allows is no floor but a remark, of which there is one
// each. Throws what `run` throws.
std::vector<std::string> AddFaultFloors(const CaseSpec& spec, const InputGenerator& inputs,
                                        Golden& golden, const FaultRun& run = RunFaulty);

}  // namespace moe
