#include "harness/layout/step_contract.h"

#include <fmt/format.h>

#include <algorithm>

namespace moe {
std::string ToText(const Reduction& reduction) {
  return fmt::format("{}@{}", reduction.tensor, ToText(reduction.axis));
}

std::string_view ToText(TpBackward backward) {
  return backward == TpBackward::kSumAtBoundary ? "sum_at_boundary" : "sum_inside";
}

std::string_view ToText(DpReduction reduction) {
  return reduction == DpReduction::kSum ? "sum" : "mean";
}

const ContractTensor* StepContract::Find(std::string_view tensor) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const ContractTensor& t) { return t.name == tensor; });
  return found == tensors.end() ? nullptr : &*found;
}

std::vector<Reduction> StepContract::Owed() const {
  std::vector<Reduction> reductions;
  for (const ContractTensor& tensor : tensors) {
    for (const Axis axis : tensor.owed) {
      reductions.push_back({tensor.name, axis});
    }
  }
  return reductions;
}

std::vector<Reduction> StepContract::Settled() const {
  std::vector<Reduction> reductions;
  for (const ContractTensor& tensor : tensors) {
    for (const Axis axis : tensor.settled) {
      reductions.push_back({tensor.name, axis});
    }
  }
  return reductions;
}

bool StepContract::Owes(const Reduction& reduction) const {
  const ContractTensor* tensor = Find(reduction.tensor);
  return tensor != nullptr &&
         std::find(tensor->owed.begin(), tensor->owed.end(), reduction.axis) != tensor->owed.end();
}

bool StepContract::IsAlone(const Reduction& reduction) const {
  const ContractTensor* tensor = Find(reduction.tensor);
  return tensor != nullptr && std::find(tensor->alone.begin(), tensor->alone.end(),
                                        reduction.axis) != tensor->alone.end();
}

}  // namespace moe
