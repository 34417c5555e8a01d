#include "tools/commands/judge_dump.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "harness/base/error.h"
#include "harness/inputs/generator.h"
#include "harness/json/model_json.h"
#include "harness/measure/problem.h"

namespace moe {
namespace {

// Inputs of the dump itself, or of the case that it names.
std::unique_ptr<TensorSource> ProblemOf(const Dump& dump, const std::optional<CaseSpec>& spec) {
  const bool carried = dump.inputs || dump.manifest.tensors.contains(tensor::x_TD);
  if (carried || !spec) {
    return std::make_unique<DumpedProblem>(dump);
  }
  if (ToJson(spec->model) != ToJson(dump.manifest.model)) {
    throw Error(dump.name,
                fmt::format("names the case {}, whose model is another one", spec->name));
  }
  return std::make_unique<InputGenerator>(*spec);
}

}  // namespace

Result JudgeDump(const CommonOptions& common, const std::string& folder) {
  const auto start = std::chrono::steady_clock::now();
  const Dump dump = OpenDump(folder);
  Result result{.id = folder,
                .dtype = std::string(ToText(dump.manifest.dtype)),
                .repro = fmt::format("build/moegate check {}", folder)};
  std::optional<CaseSpec> spec;
  std::optional<Golden> golden;
  if (dump.manifest.case_name) {
    spec = FindCase(common.cases_folder, *dump.manifest.case_name);
    golden = ReadGolden(common.golden_folder, *spec);
  }
  const auto problem = ProblemOf(dump, spec);
  JudgeOptions options{.golden = golden ? &*golden : nullptr};
  if (spec) {
    options.idle_experts = spec->numerics.idle_experts;
    options.exact = spec->numerics.fill == Fill::kDyadic;
  }
  result.judgement = Judge(dump, *problem, options);
  result.verdict = result.judgement.verdict;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace moe
