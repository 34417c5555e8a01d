// moegate regen: measures the floors of every tensor, derives its tolerance, and writes the golden
// file.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>

#include "harness/base/error.h"
#include "harness/compare/problem.h"
#include "harness/compare/tolerance.h"
#include "harness/run_case.h"
#include "tools/commands.h"
#include "tools/selection.h"

namespace moe {
namespace {

// Clean runs of these many problems beside the case's own, each with another seed.
constexpr std::uint64_t kMoreSeeds = 2;

using Measured = std::map<std::string, Judgement::Measured>;

// Runs without golden tolerances; an error of the machine ends the regeneration.
Judgement Measure(const CaseSpec& spec, const Layout& layout, Dtype dtype,
                  const InputGenerator& inputs, const std::optional<Fault>& fault,
                  const std::string& backend) {
  const Result result = RunOnce(spec, layout, dtype, inputs, fault, nullptr, {.backend = backend});
  if (result.verdict == Verdict::kError || result.verdict == Verdict::kSkipped) {
    throw Error(result.id, result.text);
  }
  if (result.verdict == Verdict::kVacuous && !fault) {
    throw Error(result.id,
                fmt::format("{} in {}: {}", "proves nothing", ToText(dtype), Headline(result)));
  }
  return result.judgement;
}

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
  const auto add = [&](const std::string& name, const reference::Matrix& value,
                       std::int64_t first) {
    squares[name] += value.squaredNorm();
    references[name].norm = std::sqrt(squares[name]);
    references[name].digest += DigestOf(value, first);
  };
  const reference::Problem problem = MakeProblem(spec.model, inputs);
  const reference::StepResult step =
      reference::RunStep(spec.model, problem, {}, [&](const reference::ExpertGradients& g) {
        add("d_w1_EFD", g.d_w1_FD.value, g.expert * g.d_w1_FD.value.size());
        add("d_w3_EFD", g.d_w3_FD.value, g.expert * g.d_w3_FD.value.size());
        add("d_w2_EDF", g.d_w2_DF.value, g.expert * g.d_w2_DF.value.size());
      });
  const std::map<std::string, const reference::Matrix*> whole = {
      {"y_TD", &step.y_TD.value},
      {"d_x_TD", &step.d_x_TD.value},
      {"d_gate_ED", &step.d_gate_ED.value},
      {"d_gate_bias_E", &step.d_gate_bias_E.value},
      {"d_shared_w1_FD", &step.d_shared_w1_FD.value},
      {"d_shared_w3_FD", &step.d_shared_w3_FD.value},
      {"d_shared_w2_DF", &step.d_shared_w2_DF.value},
      {"d_shared_gate_D", &step.d_shared_gate_D.value}};
  for (const TensorInfo& result : ResultsOf(spec.model)) {
    if (const auto found = whole.find(result.name); found != whole.end()) {
      add(result.name, *found->second, 0);
    }
  }
  return references;
}

void AddBoundAndNoise(std::map<std::string, GoldenTolerance>& tolerances, const Judgement& clean) {
  for (const auto& [tensor, measured] : clean.measured) {
    GoldenTolerance& entry = tolerances[tensor];
    entry.bound = std::max(entry.bound, measured.bound);
    entry.noise_floor = std::max(entry.noise_floor, measured.error);
  }
}

// Noise of another problem, in units of what was expected there: what the same luck would do here.
void AddNoiseOfOtherSeed(std::map<std::string, GoldenTolerance>& tolerances,
                         const Judgement& clean) {
  for (auto& [tensor, entry] : tolerances) {
    entry.noise_floor = std::max(entry.noise_floor, clean.measured.at(tensor).useful_ratio * entry.bound);
  }
}

// The case with another seed, so that noise is not that of one problem alone.
CaseSpec WithSeed(CaseSpec spec, std::uint64_t seed) {
  spec.numerics.seed = seed;
  return spec;
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

Golden Regenerate(const CaseSpec& spec, std::vector<std::string>& remarks) {
  const InputGenerator inputs(spec);
  Golden golden{.case_sha256 = Sha256OfFile(spec.path),
                .smallest_logit_margin = inputs.smallest_logit_margin(),
                .reference = ReferenceOf(spec, inputs)};
  for (const Dtype dtype : spec.numerics.dtypes) {
    auto& tolerances = golden.tolerances[dtype];
    for (const Layout& layout : spec.layouts) {
      AddBoundAndNoise(tolerances, Measure(spec, layout, dtype, inputs, std::nullopt, "threads"));
    }
    // One layout over processes: another backend adds in another order.
    AddBoundAndNoise(tolerances,
                     Measure(spec, spec.layouts.front(), dtype, inputs, std::nullopt, "gloo"));
    for (std::uint64_t more = 1; more <= kMoreSeeds; ++more) {
      const CaseSpec other = WithSeed(spec, spec.numerics.seed + more);
      const InputGenerator other_inputs(other);
      for (const Layout& layout : spec.layouts) {
        AddNoiseOfOtherSeed(tolerances,
                            Measure(other, layout, dtype, other_inputs, std::nullopt, "threads"));
      }
    }
    for (auto& [tensor, entry] : tolerances) {
      entry.tolerance = kSafety * entry.bound;
      entry.why = DescribeRounding(dtype);
    }
    for (const Layout& layout : spec.layouts) {
      for (const Fault& fault : FaultsOf(MakeContract(spec.model, layout, spec.program))) {
        const auto entry = tolerances.find(fault.reduction.tensor);
        if (entry == tolerances.end()) {
          continue;  // inside the step; what it breaks, must_catch says
        }
        const Judgement judgement = Measure(spec, layout, dtype, inputs, fault, "threads");
        const Judgement::Measured& measured = judgement.measured.at(fault.reduction.tensor);
        if (measured.bound == 0.0) {
          continue;  // on this layout every slice is judged by its own bound
        }
        const double error = measured.error;
        if (error <= entry->second.tolerance) {
          remarks.push_back(fmt::format(
              "{} {}: '{}' changes {} by {:.1e} only, which its tolerance {:.1e} allows",
              CaseId(spec, layout), ToText(dtype), ToText(fault), fault.reduction.tensor, error,
              entry->second.tolerance));
          continue;
        }
        auto& floor = entry->second.fault_floor;
        floor = std::min(floor.value_or(error), error);
      }
    }
  }
  return golden;
}

// Prints old against new and says whether a tolerance got wider.
bool ShowChanges(const std::optional<Golden>& old_golden, const Golden& golden) {
  bool wider = false;
  for (const auto& [dtype, tensors] : golden.tolerances) {
    for (const auto& [tensor, entry] : tensors) {
      std::optional<double> before;
      if (old_golden && old_golden->tolerances.contains(dtype) &&
          old_golden->tolerances.at(dtype).contains(tensor)) {
        before = old_golden->tolerances.at(dtype).at(tensor).tolerance;
      }
      const bool is_wider = before && entry.tolerance > *before * 1.05;
      wider = wider || is_wider;
      fmt::print("  {:<9} {:<16} tolerance {} -> {:.1e}{}   noise {:.1e}   smallest fault {}\n",
                 ToText(dtype), tensor, before ? fmt::format("{:.1e}", *before) : "none",
                 entry.tolerance, is_wider ? " WIDER" : "", entry.noise_floor,
                 entry.fault_floor ? fmt::format("{:.1e}", *entry.fault_floor) : "none planted");
    }
  }
  return wider;
}

// Regenerates one golden file; whether it was written.
bool RegenerateOne(const CommonOptions& common, const CaseSpec& spec, bool accept) {
  std::vector<std::string> remarks;
  const Golden golden = Regenerate(spec, remarks);
  const std::string path = GoldenPath(common.golden_folder, spec);
  std::optional<Golden> old_golden;
  if (std::filesystem::exists(path)) {
    old_golden = ParseGolden(ReadJsonFile(path), path);
  }
  const bool wider = ShowChanges(old_golden, golden);
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

}  // namespace

int Regen(const CommonOptions& common, const RegenCommand& command) {
  int status = 0;
  for (const SelectedCase& selected : Select(common.cases_folder, command.select)) {
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

}  // namespace moe
