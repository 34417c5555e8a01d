// moegate run: the built-in step under every selected case and layout.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "harness/base/error.h"
#include "harness/run_case.h"
#include "tools/commands.h"
#include "tools/selection.h"

namespace moe {
namespace {

struct Listed {
  const CaseSpec* spec;
  Layout layout;
  Dtype dtype;
};

std::vector<Dtype> DtypesOf(const CaseSpec& spec, const std::string& only) {
  if (only.empty()) {
    return spec.numerics.dtypes;
  }
  const auto dtype = DtypeFromText(only);
  if (dtype != Dtype::kFloat64 && dtype != Dtype::kFloat32 && dtype != Dtype::kBfloat16) {
    throw Error("--dtype", fmt::format("\"{}\" is no dtype of the step; use float64, float32 or bfloat16", only));
  }
  const auto& dtypes = spec.numerics.dtypes;
  return std::find(dtypes.begin(), dtypes.end(), *dtype) == dtypes.end() ? std::vector<Dtype>{}
                                                                         : std::vector<Dtype>{*dtype};
}

void UseLayout(std::vector<SelectedCase>& selected, const std::string& text) {
  const Layout layout = ParseLayout(text, "--layout");
  for (SelectedCase& one : selected) {
    CheckFits(one.spec, layout, fmt::format("{} on --layout {}", one.spec.name, text));
    one.layouts = {layout};
  }
}

}  // namespace

int Run(const CommonOptions& common, const RunCommand& command, const OutputOptions& output) {
  std::vector<SelectedCase> selected = Select(common.cases_folder, command.select);
  if (!command.layout.empty()) {
    UseLayout(selected, command.layout);
  }
  std::optional<Fault> fault;
  if (!command.fault.empty()) {
    fault = ParseFault(command.fault, "--fault");
  }
  std::vector<Listed> listed;
  for (const SelectedCase& one : selected) {
    for (const Layout& layout : one.layouts) {
      if (fault) {
        const std::string misfit = FindMisfit(*fault, MakeContract(one.spec.model, layout, one.spec.program));
        if (!misfit.empty()) {
          throw Error("--fault", fmt::format("{} on {}", misfit, CaseId(one.spec, layout)));
        }
      }
      for (const Dtype dtype : DtypesOf(one.spec, command.dtype)) {
        listed.push_back({&one.spec, layout, dtype});
      }
    }
  }
  if (listed.empty()) {
    throw Error("--dtype", fmt::format("no selected case runs in {}", command.dtype));
  }
  const RunOptions options{
      .backend = command.backend,
      .golden_folder = common.golden_folder,
      .dump_folder = command.dump_folder,
      .deadline = std::chrono::milliseconds(static_cast<std::int64_t>(command.deadline_seconds * 1000.0))};

  std::vector<Result> results;
  const CaseSpec* current = nullptr;
  std::optional<InputGenerator> inputs;
  std::optional<Golden> golden;
  const bool progress = ::isatty(STDERR_FILENO) == 1;
  for (const Listed& item : listed) {
    if (progress) {
      fmt::print(stderr, "\r\033[K[{}/{}] {} {}", results.size() + 1, listed.size(),
                 CaseId(*item.spec, item.layout), ToText(item.dtype));
    }
    try {
      if (item.spec != current) {
        golden = ReadGolden(common.golden_folder, *item.spec);
        inputs.emplace(*item.spec);
        current = item.spec;
      }
      results.push_back(fault ? RunOnce(*item.spec, item.layout, item.dtype, *inputs, fault, &*golden, options)
                              : RunCase(*item.spec, item.layout, item.dtype, *inputs, *golden, options));
    } catch (const Error& error) {
      results.push_back({.id = CaseId(*item.spec, item.layout),
                         .dtype = std::string(ToText(item.dtype)),
                         .backend = command.backend,
                         .verdict = Verdict::kError,
                         .text = error.what()});
    }
    if (progress) {
      fmt::print(stderr, "\r\033[K");
    }
    if (!output.json) {
      fmt::print("{}", ToText(results.back()));
      std::fflush(stdout);
    }
  }
  return Finish(results, static_cast<std::int64_t>(listed.size()), output);
}

}  // namespace moe
