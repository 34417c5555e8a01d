// One case on one layout, whose graph is made once (GraphOf) and handed on: the nine steps of
// DESIGN.md in their order. Read run_case.cc first.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "harness/inputs/generator.h"
#include "harness/parallel/step_plugin.h"
#include "harness/report/result.h"
#include "harness/spec/case_spec.h"

namespace moe {

struct RunOptions {
  std::string backend = "threads";
  // Brings back what the ranks of a step hold, where it is not RunRanksOf that starts them.
  std::function<std::vector<RankOutput>(const StepRequest&)> run_ranks;
  // Judges a dump, where somebody knows more than Judge: what it said of the same dump before.
  std::function<Judgement(const Dump&, const TensorSource&, const JudgeOptions&)> judge;
  std::string golden_folder;
  std::optional<std::string> dump_folder;  // keep the dump of every run below it
  std::chrono::milliseconds deadline{20'000};
  bool worst_case = false;  // measure against the worst-case bound too
};

// The clean run of a case on a layout and one run per fault that it wants told there, in the order
// in which RunCase asks for them.
std::vector<StepRequest> RequestsOf(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                                    const InputGenerator& inputs, const RunOptions& options);

// The dump of one run in memory and which sums its ranks took part in.
struct RunDump {
  Dump dump;
  std::vector<std::vector<std::string>> calls;
};

// What the built-in step's ranks hold becomes the dump that a foreign framework would write.
RunDump MakeRunDump(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
                    const std::vector<RankOutput>& outputs);

// Runs the step with `fault` planted, or without, and judges it. `golden` may be null: then the
// error model alone says what is allowed. Errors of the machine or of the case become a Result with
// that verdict.
Result RunOnce(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
               const TensorSource& inputs, const std::optional<Fault>& fault, const Golden* golden,
               const RunOptions& options);

// A clean run and then every fault that the case wants told on this layout.
Result RunCase(const CaseSpec& spec, const StepGraph& graph, Dtype dtype,
               const InputGenerator& inputs, const Golden& golden, const RunOptions& options);

// Whether the judge said of a planted fault what the case wants.
bool IsCaught(const MustCatch& wanted, const Result& result);

}  // namespace moe
