// moegate regen: derives the tolerance of every tensor, measures noise and faults, and writes the
// golden file; or with --calibrate only says how clean runs compare with the bounds.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "harness/base/error.h"
#include "harness/measure/problem.h"
#include "harness/measure/tolerance.h"
#include "tools/commands/clean_runs.h"
#include "tools/commands/commands.h"
#include "tools/commands/fault_floors.h"
#include "tools/commands/golden_update.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

// Of tolerances of the dyadic fill.
constexpr const char* kExactWhy =
    "every product and partial sum of the dyadic fill is exact in this dtype, in any order";

std::map<std::string, GoldenReference> ReferenceOf(const CaseSpec& spec,
                                                   const InputGenerator& inputs) {
  ReferenceSums sums;
  const auto add = [&](const reference::Results& results, std::int64_t slice) {
    for (const auto& [name, result] : results) {
      const auto size = static_cast<std::size_t>(result.value.size());
      sums.Add(name, {result.value.data(), size}, slice * result.value.size());
    }
  };
  const reference::StepResult step = reference::RunStep(
      spec.model, MakeProblem(spec.model, inputs), {},
      [&](const reference::ExpertGradients& expert) { add(expert.results, expert.expert); });
  add(step.results, 0);
  return sums.ByTensor();
}

Golden Regenerate(const CaseSpec& spec, const std::optional<Golden>& before,
                  std::vector<std::string>& remarks) {
  const InputGenerator inputs(spec);
  const bool exact = spec.numerics.fill == Fill::kDyadic;  // judged with bound and tolerance 0
  Golden golden{.case_sha256 = Sha256OfFile(spec.path),
                .smallest_logit_margin = inputs.smallest_logit_margin(),
                .reference = ReferenceOf(spec, inputs)};
  for (const Dtype dtype : spec.numerics.dtypes) {
    const auto clean = MeasureCleanRuns(spec, dtype, inputs);
    CheckCleanRuns(spec, dtype, clean);
    for (const auto& [tensor, runs] : clean) {
      golden.tolerances[dtype][tensor] = ToleranceFrom(runs, EntryOf(before, dtype, tensor),
                                                       exact ? kExactWhy : DescribeRounding(dtype));
    }
  }
  remarks = AddFaultFloors(spec, inputs, golden);
  return golden;
}

// Prints old against new.
void ShowChanges(const std::optional<Golden>& before, const Golden& golden) {
  for (const auto& [dtype, tensors] : golden.tolerances) {
    for (const auto& [tensor, entry] : tensors) {
      const std::optional<GoldenTolerance> old_entry = EntryOf(before, dtype, tensor);
      fmt::print(
          "  {:<9} {:<16} tolerance {} -> {:.1e}{}   noise {:.1e}   smallest fault {}   detectable "
          "scale {:.1e}\n",
          ToText(dtype), tensor, old_entry ? fmt::format("{:.1e}", old_entry->tolerance) : "none",
          entry.tolerance, IsWider(entry, old_entry) ? " WIDER" : "", entry.noise_floor,
          entry.fault_floor ? fmt::format("{:.1e}", *entry.fault_floor) : "none planted",
          entry.detectable_scale);
    }
  }
}

// Regenerates one golden file; whether it is now as it should be.
bool RegenerateOne(const CommonOptions& common, const CaseSpec& spec, bool accept) {
  const std::string path = GoldenPath(common.golden_folder, spec);
  const std::optional<Golden> before = GoldenBefore(path);
  std::vector<std::string> remarks;
  const Golden golden = Regenerate(spec, before, remarks);
  ShowChanges(before, golden);
  for (const std::string& remark : remarks) {
    fmt::print("  note: {}\n", remark);
  }
  std::fflush(stdout);
  switch (UpdateGolden(path, before, golden, accept)) {
    case GoldenUpdate::kWritten:
      fmt::print("  written to {}\n", path);
      return true;
    case GoldenUpdate::kUnchanged:
      fmt::print("  unchanged\n");
      return true;
    case GoldenUpdate::kRefused:
      fmt::print("  not written: a tolerance would get wider; look why, then pass --accept\n");
      return false;
  }
  return false;
}

// Per dtype what clean runs reached of the bounds, by tensor and case.
using Calibration = std::map<Dtype, std::vector<CleanRuns>>;

void PrintDistribution(const std::string& what, std::vector<double> ratios) {
  std::sort(ratios.begin(), ratios.end());
  fmt::print("  {:<28} min {:.3f}   median {:.3f}   max {:.3f}{}\n", what, ratios.front(),
             ratios[ratios.size() / 2], ratios.back(), ratios.back() > 1.0 ? "   EXCEEDED" : "");
}

// Says whether every clean run stayed within every bound.
bool ShowCalibration(const Calibration& calibration) {
  bool within = true;
  for (const auto& [dtype, tensors] : calibration) {
    fmt::print("{}: {} tensors\n", ToText(dtype), tensors.size());
    const auto show = [&, &all = tensors](const std::string& what, double CleanRuns::*member) {
      std::vector<double> ratios;
      for (const CleanRuns& runs : all) {
        ratios.push_back(runs.*member);
        within = within && runs.*member <= 1.0;
      }
      PrintDistribution(what, std::move(ratios));
    };
    show("noise / bound", &CleanRuns::ratio);
    show("noise / worst case", &CleanRuns::worst_case_ratio);
    show("scale noise / scale bound", &CleanRuns::scale_ratio);
    const auto largest = std::max_element(tensors.begin(), tensors.end(),
                                          [](const CleanRuns& a, const CleanRuns& b) {
                                            return a.detectable_scale < b.detectable_scale;
                                          });
    fmt::print("  largest detectable scale     {:.1e}\n", largest->detectable_scale);
  }
  return within;
}

int Calibrate(const std::vector<CaseSpec>& selection) {
  Calibration calibration;
  for (const CaseSpec& spec : selection) {
    const InputGenerator inputs(spec);
    for (const Dtype dtype : spec.numerics.dtypes) {
      for (const auto& [tensor, runs] : MeasureCleanRuns(spec, dtype, inputs)) {
        calibration[dtype].push_back(runs);
      }
    }
  }
  return ShowCalibration(calibration) ? 0 : 1;
}

struct RegenCommand {
  std::vector<std::string> select;
  bool accept = false;     // also write what is wider than before
  bool calibrate = false;  // write nothing: print what clean runs reach of the bounds
};

int Regen(const CommonOptions& common, const RegenCommand& command) {
  for (const std::string& text : command.select) {
    if (text.find('@') != std::string::npos) {
      throw Error(text,
                  "names a layout, and a golden file holds for all layouts of its case; name "
                  "the case alone");
    }
  }
  const std::vector<CaseSpec> selection = Select(common.cases_folder, command.select);
  if (command.calibrate) {
    return Calibrate(selection);
  }
  int status = 0;
  for (const CaseSpec& spec : selection) {
    fmt::print("{}\n", spec.name);
    std::fflush(stdout);
    try {
      status = std::max(status, RegenerateOne(common, spec, command.accept) ? 0 : 1);
    } catch (const Error& error) {
      fmt::print(stderr, "ERROR  {}\n", error.what());
      status = 2;
    }
  }
  return status;
}

}  // namespace

void RegisterRegen(CLI::App& app, const CommonOptions& common, int& status) {
  const auto command = std::make_shared<RegenCommand>();
  CLI::App* sub = app.add_subcommand("regen", "Regenerate golden files; shows old against new");
  sub->add_option("SELECT", command->select, "CASE, with * and ? as in a shell; all by default");
  sub->add_flag("--accept", command->accept, "Also write tolerances that are wider than before");
  sub->add_flag("--calibrate", command->calibrate,
                "Write nothing; print per dtype the least, median and largest noise of clean runs "
                "over its bound, and exit with 1 where one exceeds it");
  sub->callback([&common, &status, command] { status = Regen(common, *command); });
}

}  // namespace moe
