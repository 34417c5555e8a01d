// moegate regen: derives the tolerance of every tensor, measures noise and faults, and writes the
// golden file; or with --calibrate only says how clean runs compare with the bounds.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>

#include "harness/base/error.h"
#include "harness/measure/problem.h"
#include "harness/measure/tolerance.h"
#include "harness/run_case.h"
#include "harness/run_step.h"
#include "tools/commands/clean_runs.h"
#include "tools/commands/commands.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

// Of tolerances of the dyadic fill.
constexpr const char* kExactWhy =
    "every product and partial sum of the dyadic fill is exact in this dtype, in any order";

// A signed sum over all elements, with signs that a swap or a shift would not keep.
double DigestOf(const reference::Matrix& matrix, std::int64_t first) {
  double sum = 0.0;
  for (Eigen::Index i = 0; i < matrix.size(); ++i) {
    const auto index = static_cast<std::uint64_t>(first + i) * 0x9e3779b97f4a7c15ULL;
    sum += (index >> 40U & 1U) != 0 ? -matrix.data()[i] : matrix.data()[i];
  }
  return sum;
}

std::map<std::string, GoldenReference> ReferenceOf(const CaseSpec& spec,
                                                   const InputGenerator& inputs) {
  std::map<std::string, GoldenReference> references;
  std::map<std::string, double> squares;
  const auto add = [&](const reference::Results& results, std::int64_t slice) {
    for (const auto& [name, result] : results) {
      squares[name] += result.value.squaredNorm();
      references[name].norm = std::sqrt(squares[name]);
      references[name].digest += DigestOf(result.value, slice * result.value.size());
    }
  };
  const reference::StepResult step = reference::RunStep(
      spec.model, MakeProblem(spec.model, inputs), {},
      [&](const reference::ExpertGradients& expert) { add(expert.results, expert.expert); });
  add(step.results, 0);
  return references;
}

// Every drop, repetition and mean of the sums that the tensors themselves are owed.
std::vector<Fault> FaultsOf(const StepContract& contract) {
  std::vector<Fault> faults;
  for (const Reduction& reduction : contract.Owed()) {
    for (const Fault::Kind kind : {Fault::Kind::kDrop, Fault::Kind::kRepeat, Fault::Kind::kMean}) {
      faults.push_back({.kind = kind, .reduction = reduction});
    }
  }
  return faults;
}

// The entry of a tensor before, where there is one.
std::optional<GoldenTolerance> EntryOf(const std::optional<Golden>& golden, Dtype dtype,
                                       const std::string& tensor) {
  if (!golden || !golden->tolerances.contains(dtype) ||
      !golden->tolerances.at(dtype).contains(tensor)) {
    return std::nullopt;
  }
  return golden->tolerances.at(dtype).at(tensor);
}

// The faulty step in float64, judged as each dtype of the case would be: what a fault does is no
// matter of rounding, and so is recorded without any.
std::map<Dtype, Judgement> MeasureFault(const CaseSpec& spec, const StepGraph& graph,
                                        const InputGenerator& inputs, const Fault& fault) {
  const std::vector<RankOutput> outputs = RunRanksOf(
      {.graph = &graph, .dtype = Dtype::kFloat64, .inputs = &inputs, .fault = fault}, "threads");
  std::map<Dtype, Judgement> judgements;
  for (const Dtype dtype : spec.numerics.dtypes) {
    const RunDump run = MakeRunDump(spec, graph, dtype, outputs);
    judgements[dtype] = Judge(run.dump, inputs,
                              {.graph = &graph,
                               .calls = run.calls,
                               .idle_experts = spec.numerics.idle_experts,
                               .exact = spec.numerics.fill == Fill::kDyadic});
  }
  return judgements;
}

void AddFaultFloors(const CaseSpec& spec, const InputGenerator& inputs, Golden& golden,
                    std::vector<std::string>& remarks) {
  for (const Layout& layout : spec.layouts) {
    const StepGraph graph = GraphOf(spec, layout);
    for (const Fault& fault : FaultsOf(graph.contract())) {
      const std::string& tensor = fault.reduction.tensor;
      if (!golden.reference.contains(tensor)) {
        continue;  // inside the step; what it breaks, must_catch says
      }
      for (const auto& [dtype, judgement] : MeasureFault(spec, graph, inputs, fault)) {
        GoldenTolerance& entry = golden.tolerances.at(dtype).at(tensor);
        const TensorFigures& measured = judgement.measured.at(tensor);
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
      const double bound = RoundedUp(runs.bound);
      golden.tolerances[dtype][tensor] = {
          .tolerance = kSafety * bound,
          .bound = bound,
          .worst_case = RoundedUp(runs.worst_case),
          .detectable_scale = RoundedUp(runs.detectable_scale),
          .noise_floor = NoiseStep(runs.noise, bound, EntryOf(before, dtype, tensor)),
          .why = exact ? kExactWhy : DescribeRounding(dtype)};
    }
  }
  AddFaultFloors(spec, inputs, golden, remarks);
  return golden;
}

// Prints old against new and says whether a tolerance got wider.
bool ShowChanges(const std::optional<Golden>& before, const Golden& golden) {
  bool wider = false;
  for (const auto& [dtype, tensors] : golden.tolerances) {
    for (const auto& [tensor, entry] : tensors) {
      const std::optional<GoldenTolerance> old_entry = EntryOf(before, dtype, tensor);
      const bool is_wider = old_entry && entry.tolerance > old_entry->tolerance * (1.0 + 1e-9);
      wider = wider || is_wider;
      fmt::print(
          "  {:<9} {:<16} tolerance {} -> {:.1e}{}   noise {:.1e}   smallest fault {}   detectable "
          "scale {:.1e}\n",
          ToText(dtype), tensor, old_entry ? fmt::format("{:.1e}", old_entry->tolerance) : "none",
          entry.tolerance, is_wider ? " WIDER" : "", entry.noise_floor,
          entry.fault_floor ? fmt::format("{:.1e}", *entry.fault_floor) : "none planted",
          entry.detectable_scale);
    }
  }
  return wider;
}

// Regenerates one golden file; whether it was written.
bool RegenerateOne(const CommonOptions& common, const CaseSpec& spec, bool accept) {
  const std::string path = GoldenPath(common.golden_folder, spec);
  std::optional<Golden> before;
  if (std::filesystem::exists(path)) {
    before = ParseGolden(ReadJsonFile(path), path);
  }
  std::vector<std::string> remarks;
  const Golden golden = Regenerate(spec, before, remarks);
  const bool wider = ShowChanges(before, golden);
  for (const std::string& remark : remarks) {
    fmt::print("  note: {}\n", remark);
  }
  std::fflush(stdout);
  // The loader's own checks: a case without room between noise and faults is refused here, not
  // loosened.
  const Json json = ToJson(golden);
  ParseGolden(json, path);
  if (wider && !accept) {
    fmt::print("  not written: a tolerance would get wider; look why, then pass --accept\n");
    return false;
  }
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  WriteJsonFile(path, json);
  fmt::print("  written to {}\n", path);
  return true;
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

int Calibrate(const std::vector<SelectedCase>& selection) {
  Calibration calibration;
  for (const SelectedCase& selected : selection) {
    const InputGenerator inputs(selected.spec);
    for (const Dtype dtype : selected.spec.numerics.dtypes) {
      for (const auto& [tensor, runs] : MeasureCleanRuns(selected.spec, dtype, inputs)) {
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
  const std::vector<SelectedCase> selection = Select(common.cases_folder, command.select);
  if (command.calibrate) {
    return Calibrate(selection);
  }
  int status = 0;
  for (const SelectedCase& selected : selection) {
    fmt::print("{}\n", selected.spec.name);
    std::fflush(stdout);
    try {
      status = std::max(status, RegenerateOne(common, selected.spec, command.accept) ? 0 : 1);
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
