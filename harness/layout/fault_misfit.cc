// Where a fault can be planted.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "harness/layout/fault.h"

namespace moe {
namespace {

using Kind = Fault::Kind;

std::vector<std::string> ToTexts(const std::vector<Reduction>& reductions) {
  std::vector<std::string> texts;
  for (const Reduction& reduction : reductions) {
    texts.push_back(ToText(reduction));
  }
  return texts;
}

std::string FindReductionMisfit(const Fault& fault, const StepContract& contract) {
  std::vector<Reduction> known = contract.Owed();
  const std::vector<Reduction> settled = contract.Settled();
  known.insert(known.end(), settled.begin(), settled.end());
  if (fault.kind == Kind::kWrongGroup && contract.IsAlone(fault.reduction)) {
    known.push_back(fault.reduction);
  }
  if (std::find(known.begin(), known.end(), fault.reduction) == known.end()) {
    if (known.empty()) {
      return fmt::format("{} does not exist here: this layout has no reductions at all",
                         ToText(fault.reduction));
    }
    return fmt::format("{} does not exist here; this layout has {}", ToText(fault.reduction),
                       fmt::join(ToTexts(known), ", "));
  }
  if (fault.kind == Kind::kWrongGroup) {
    if (fault.axis == fault.reduction.axis) {
      return fmt::format("wrong-group {}: {} is the right axis of {}", ToText(fault.axis),
                         ToText(fault.axis), ToText(fault.reduction));
    }
    if (contract.meshes.dense.SizeOf(fault.axis) * contract.meshes.expert.SizeOf(fault.axis) == 1) {
      return fmt::format("wrong-group {}: the axis has size 1 here", ToText(fault.axis));
    }
    if (fault.reduction.axis == Axis::kEtp) {
      return fmt::format(
          "wrong-group {}: its ranks got other numbers of rows than those of etp, so "
          "no sum of {} over them would run",
          ToText(fault.axis), fault.reduction.tensor);
    }
  }
  return "";
}

std::string FindTensorMisfit(const Fault& fault, const StepContract& contract) {
  const std::string text = ToText(fault);
  if (fault.tensor == tensor::tokens_per_expert_E &&
      (fault.kind == Kind::kSkipRank || fault.kind == Kind::kDoubleRank ||
       fault.kind == Kind::kScale)) {
    return "";
  }
  const ContractTensor* at = contract.Find(fault.tensor);
  if (at == nullptr || !at->result) {
    std::vector<std::string> names;
    for (const ContractTensor& known : contract.tensors) {
      if (known.result) {
        names.push_back(known.name);
      }
    }
    return fmt::format("{}: there is no such result here; this layout has {}", text,
                       fmt::join(names, ", "));
  }
  const auto lies = [&](Axis axis, Placement::Kind kind) {
    const Mesh& mesh = contract.meshes.Of(at->mesh);
    return mesh.SizeOf(axis) > 1 && PlacementOn(at->placements, axis).kind == kind;
  };
  if (fault.kind == Kind::kPermute && !DimOf(fault.tensor, fault.name)) {
    return fmt::format("{}: {} has no {} to permute", text, fault.tensor, fault.name);
  }
  if (fault.kind == Kind::kMisplace && !lies(fault.axis, Placement::Kind::kShard)) {
    return fmt::format("{}: {} is not sharded over {} here", text, fault.tensor,
                       ToText(fault.axis));
  }
  if (fault.kind == Kind::kStaleRank) {
    const auto& axes = contract.meshes.Of(at->mesh).axes;
    if (std::none_of(axes.begin(), axes.end(),
                     [&](Axis axis) { return lies(axis, Placement::Kind::kReplicate); })) {
      return fmt::format("{}: {} has no replicas here", text, fault.tensor);
    }
  }
  const bool is_of_rows = fault.kind == Kind::kLocalNorm || fault.kind == Kind::kIdleGarbage;
  if (is_of_rows && !IsExpertWeight(fault.tensor)) {
    return fmt::format(
        "{}: only the gradients of the experts' weights depend on how many rows a rank got", text);
  }
  if (fault.kind == Kind::kLocalNorm && contract.meshes.expert.SizeOf(Axis::kEdp) == 1) {
    return fmt::format("{}: edp has size 1 here, so there is no share but one's own", text);
  }
  return "";
}

std::string FindGatherMisfit(const Fault& fault, const StepGraph& graph) {
  const std::vector<Reduction>& gathers = graph.gathers();
  if (std::find(gathers.begin(), gathers.end(), fault.reduction) != gathers.end()) {
    return "";
  }
  return fmt::format("{} is gathered nowhere here; {}", ToText(fault.reduction),
                     gathers.empty()
                         ? "this layout has no sequence parallelism"
                         : fmt::format("this layout has {}", fmt::join(ToTexts(gathers), ", ")));
}

}  // namespace

bool IsOfParameter(const Reduction& reduction) {
  const TensorRow* row = FindTensor(reduction.tensor);
  return row != nullptr && row->IsOfParameter();
}

std::string FindMisfit(const Fault& fault, const StepGraph& graph) {
  const StepContract& contract = graph.contract();
  if (fault.kind == Kind::kDropAll) {
    const std::vector<Reduction> owed = contract.Owed();
    return std::any_of(owed.begin(), owed.end(), IsOfParameter)
               ? ""
               : "drop-all: no parameter is owed a sum here";
  }
  if (fault.kind == Kind::kDropGather) {
    return FindGatherMisfit(fault, graph);
  }
  if (fault.kind == Kind::kLosePath || fault.kind == Kind::kDoublePath) {
    const auto path = PathFromText(fault.name);
    return path && graph.HasPath(*path)
               ? ""
               : fmt::format("{}: the model has no {} experts", ToText(fault), fault.name);
  }
  if (fault.kind == Kind::kLeakSlots) {
    const std::int64_t tp = contract.meshes.dense.SizeOf(Axis::kTp);
    return tp > 1 && tp != contract.meshes.expert.SizeOf(Axis::kEtp)
               ? ""
               : "leak-slots: every rank computes all slots of its tokens here";
  }
  if (fault.kind == Kind::kShuffleRows || fault.kind == Kind::kSplitRows ||
      fault.kind == Kind::kModel) {
    return "";
  }
  const bool takes_rank = fault.kind == Kind::kSkipRank || fault.kind == Kind::kDoubleRank ||
                          fault.kind == Kind::kStaleRank;
  const std::int64_t world = contract.meshes.dense.WorldSize();
  if (takes_rank && fault.rank >= world) {
    const std::string text = ToText(fault);
    return fmt::format("{} {}: the ranks are 0 to {}", text.substr(0, text.find(' ')), fault.rank,
                       world - 1);
  }
  return fault.tensor.empty() ? FindReductionMisfit(fault, contract)
                              : FindTensorMisfit(fault, contract);
}

}  // namespace moe
