// Where a fault can be planted.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "harness/layout/fault.h"

namespace moe {
namespace {

using Kind = Fault::Kind;

constexpr std::string_view kCounts = "tokens_per_expert_E";

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
  if (fault.tensor == kCounts && (fault.kind == Kind::kSkipRank ||
                                  fault.kind == Kind::kDoubleRank || fault.kind == Kind::kScale)) {
    return "";
  }
  const ContractTensor* tensor = contract.Find(fault.tensor);
  if (tensor == nullptr || !tensor->result) {
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
    const Mesh& mesh = contract.meshes.Of(tensor->mesh);
    return mesh.SizeOf(axis) > 1 && PlacementOn(tensor->placements, axis).kind == kind;
  };
  switch (fault.kind) {
    case Kind::kPermute:
      if (!DimOf(fault.tensor, fault.name)) {
        return fmt::format("{}: {} has no {} to permute", text, fault.tensor, fault.name);
      }
      break;
    case Kind::kMisplace:
      if (!lies(fault.axis, Placement::Kind::kShard)) {
        return fmt::format("{}: {} is not sharded over {} here", text, fault.tensor,
                           ToText(fault.axis));
      }
      break;
    case Kind::kStaleRank: {
      const auto& axes = contract.meshes.Of(tensor->mesh).axes;
      if (std::none_of(axes.begin(), axes.end(),
                       [&](Axis axis) { return lies(axis, Placement::Kind::kReplicate); })) {
        return fmt::format("{}: {} has no replicas here", text, fault.tensor);
      }
      break;
    }
    case Kind::kLocalNorm:
    case Kind::kIdleGarbage:
      if (!IsExpertWeight(fault.tensor)) {
        return fmt::format(
            "{}: only the gradients of the experts' weights depend on how many rows "
            "a rank got",
            text);
      }
      if (fault.kind == Kind::kLocalNorm && contract.meshes.expert.SizeOf(Axis::kEdp) == 1) {
        return fmt::format("{}: edp has size 1 here, so there is no share but one's own", text);
      }
      break;
    default:
      break;
  }
  return "";
}

std::string FindGatherMisfit(const Fault& fault, const StepContract& contract) {
  const ContractTensor* y = contract.Find("y_TD");
  const bool gathers = y != nullptr && PlacementOn(y->placements, Axis::kTp) == Shard(0);
  const std::string& tensor = fault.reduction.tensor;
  if (gathers && fault.reduction.axis == Axis::kTp && (tensor == "d_y_TD" || tensor == "x_TD")) {
    return "";
  }
  return fmt::format(
      "{} is gathered nowhere here; {}", ToText(fault.reduction),
      gathers ? "this layout has d_y_TD@tp, x_TD@tp" : "this layout has no sequence parallelism");
}

}  // namespace

bool IsOfParameter(const Reduction& reduction, const StepContract& contract) {
  const ContractTensor* tensor = contract.Find(reduction.tensor);
  return tensor != nullptr && tensor->result && tensor->name != "y_TD" && tensor->name != "d_x_TD";
}

std::string FindMisfit(const Fault& fault, const StepContract& contract) {
  switch (fault.kind) {
    case Kind::kDropAll: {
      const std::vector<Reduction> owed = contract.Owed();
      return std::any_of(owed.begin(), owed.end(),
                         [&](const Reduction& r) { return IsOfParameter(r, contract); })
                 ? ""
                 : "drop-all: no parameter is owed a sum here";
    }
    case Kind::kDropGather:
      return FindGatherMisfit(fault, contract);
    case Kind::kLosePath:
    case Kind::kDoublePath:
      return fault.name == "shared" && contract.Find("d_shared_w1_FD") == nullptr
                 ? fmt::format("{}: the model has no shared experts", ToText(fault))
                 : "";
    case Kind::kLeakSlots:
      return contract.meshes.dense.SizeOf(Axis::kTp) > 1 &&
                     contract.meshes.dense.SizeOf(Axis::kTp) !=
                         contract.meshes.expert.SizeOf(Axis::kEtp)
                 ? ""
                 : "leak-slots: every rank computes all slots of its tokens here";
    case Kind::kShuffleRows:
    case Kind::kSplitRows:
    case Kind::kModel:
      return "";
    default:
      break;
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
