// moegate explain: the problem of a case, what its tensors may be off by, its meshes, and the
// contract of its layouts as a table.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>

#include "harness/base/error.h"
#include "harness/measure/golden.h"
#include "tools/commands/commands.h"
#include "tools/commands/selection.h"

namespace moe {
namespace {

void PrintMesh(const Mesh& mesh, MeshKind kind) {
  std::vector<std::string> axes;
  std::vector<std::string> groups;
  for (const Axis axis : mesh.axes) {
    axes.push_back(fmt::format("{} {}", ToText(axis), mesh.SizeOf(axis)));
    if (mesh.SizeOf(axis) == 1) {
      continue;
    }
    std::vector<std::string> of_axis;
    for (std::int64_t rank = 0; rank < mesh.WorldSize(); ++rank) {
      const auto group = mesh.GroupOf(rank, {axis});
      if (group.front() == rank) {
        of_axis.push_back(fmt::format("{{{}}}", fmt::join(group, ",")));
      }
    }
    groups.push_back(fmt::format("    {:<12} {}", ToText(axis), fmt::join(of_axis, " ")));
  }
  fmt::print("  {} mesh: {}\n", ToText(kind), fmt::join(axes, ", "));
  for (const std::string& line : groups) {
    fmt::print("{}\n", line);
  }
}

void PrintContract(const StepContract& contract) {
  fmt::print("  {:<16} {:<14} {:<34} {:<28} {}\n", "tensor", "shape",
             "placement when the step is over", "sums owed", "whole already");
  for (const ContractTensor& tensor : contract.tensors) {
    std::vector<std::string> placements;
    for (const auto& [axis, placement] : tensor.placements) {
      placements.push_back(fmt::format("{} {}", ToText(axis), ToText(placement)));
    }
    const auto names = [](const std::vector<Axis>& axes) {
      std::vector<std::string> texts;
      for (const Axis axis : axes) {
        texts.push_back(fmt::format("@{}", ToText(axis)));
      }
      return fmt::format("{}", fmt::join(texts, " "));
    };
    fmt::print("  {:<16} {:<14} {:<34} {:<28} {}\n", tensor.name,
               tensor.result ? ToText(tensor.shape) : "(inside)",
               tensor.result ? fmt::format("{}", fmt::join(placements, ", ")) : "",
               names(tensor.owed), names(tensor.settled));
  }
}

// What the golden file says of each tensor, relative to the norm of a slice.
void PrintTolerances(const CommonOptions& common, const CaseSpec& spec) {
  std::optional<Golden> golden;
  try {
    golden = ReadGolden(common.golden_folder, spec);
  } catch (const Error& error) {
    fmt::print("  no tolerances: {}\n", error.what());
    return;
  }
  fmt::print("  smallest margin of a choice of experts, in logits: {:.1e}\n\n",
             golden->smallest_logit_margin);
  fmt::print("  {:<9} {:<16} {:>10} {:>10} {:>11} {:>9} {:>15} {:>17}\n", "dtype", "tensor",
             "tolerance", "bound", "worst case", "noise", "smallest fault", "detectable scale");
  for (const Dtype dtype : spec.numerics.dtypes) {
    for (const TensorInfo& result : ResultsOf(spec.model)) {
      const GoldenTolerance& entry = golden->tolerances.at(dtype).at(result.name);
      fmt::print("  {:<9} {:<16} {:>10.1e} {:>10.1e} {:>11.1e} {:>9.1e} {:>15} {:>17.1e}\n",
                 ToText(dtype), result.name, entry.tolerance, entry.bound, entry.worst_case,
                 entry.noise_floor,
                 entry.fault_floor ? fmt::format("{:.1e}", *entry.fault_floor) : "none planted",
                 entry.detectable_scale);
    }
  }
}

void Explain(const CommonOptions& common, const std::string& target) {
  for (const CaseSpec& spec : Select(common.cases_folder, {target})) {
    const Model& m = spec.model;
    fmt::print("{}\n  {}\n  {}\n\n", spec.name, spec.why, spec.source);
    fmt::print("  T {} tokens, D {} d_model, F {} d_expert, E {} experts, K {} top_k, shared {}\n",
               m.tokens, m.d_model, m.d_expert, m.experts, m.top_k, m.d_shared);
    fmt::print("  {} scores, applied {}{}{}, scale {}{}{}\n", ToText(m.score_function),
               m.score_placement == ScorePlacement::kBeforeExperts ? "before the experts"
                                                                   : "after the experts",
               m.route_norm ? ", normalised" : "", m.gate_bias ? ", gate bias" : "", m.route_scale,
               m.expert_bias ? ", expert bias" : "",
               m.expert_groups > 1
                   ? fmt::format(", best {} of {} groups", m.limited_groups, m.expert_groups)
                   : "");
    fmt::print("  program: tp_backward {}, dp_reduction {}\n", ToText(spec.program.tp_backward),
               ToText(spec.program.dp_reduction));
    PrintTolerances(common, spec);
    for (const Layout& layout : spec.layouts) {
      const StepGraph graph = GraphOf(spec, layout);
      const StepContract& contract = graph.contract();
      fmt::print("\n{}@{}: {} ranks\n", spec.name, ToText(layout), layout.WorldSize());
      PrintMesh(contract.meshes.dense, MeshKind::kDense);
      PrintMesh(contract.meshes.expert, MeshKind::kExpert);
      fmt::print("\n");
      PrintContract(contract);
      for (const MustCatch& wanted : spec.must_catch) {
        if (wanted.on == layout) {
          fmt::print(
              "  must catch  '{}'{}\n", ToText(wanted.fault),
              wanted.cause.empty() ? "" : fmt::format(" as {} of {}", wanted.cause, wanted.tensor));
        }
      }
      for (const MustPass& wanted : spec.must_pass) {
        if (wanted.on == layout) {
          fmt::print("  must pass   '{}'\n", ToText(wanted.fault));
        }
      }
    }
  }
}

}  // namespace

void RegisterExplain(CLI::App& app, const CommonOptions& common, int& status) {
  const auto target = std::make_shared<std::string>();
  CLI::App* sub = app.add_subcommand(
      "explain",
      "Show a case's problem, what its tensors may be off by, its meshes, and which sums a correct "
      "step owes under each layout");
  sub->add_option("CASE[@LAYOUT]", *target, "A case, or one of its layouts")->required();
  sub->callback([&common, &status, target] {
    Explain(common, *target);
    status = 0;
  });
}

}  // namespace moe
