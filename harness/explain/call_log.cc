#include "harness/explain/call_log.h"

#include <algorithm>

namespace moe {
namespace {

bool Contains(const std::vector<Axis>& axes, Axis axis) {
  return std::find(axes.begin(), axes.end(), axis) != axes.end();
}

}  // namespace

CallLog::CallLog(const StepGraph* graph, const std::vector<std::vector<std::string>>& calls)
    : graph_(graph), contract_(graph == nullptr ? nullptr : &graph->contract()), calls_(calls) {
  for (const auto& of_rank : calls) {
    longest_ = std::max(longest_, of_rank.size());
  }
}

std::ptrdiff_t CallLog::Times(const Reduction& reduction, bool divided_only) const {
  const std::string name = ToText(reduction);
  std::ptrdiff_t most = 0;
  for (const auto& of_rank : calls_) {
    most = std::max(most, std::count_if(of_rank.begin(), of_rank.end(), [&](const auto& call) {
                      const bool is_divided = call.starts_with(name + "/");
                      return is_divided || (!divided_only && call == name);
                    }));
  }
  return most;
}

bool CallLog::ShowsRepeat(const std::string& tensor, Axis axis) const {
  const auto sums = graph_->SumsBehind(tensor);
  return std::any_of(sums.begin(), sums.end(), [&](const Reduction& sum) {
    return sum.axis == axis && Times(sum) > (contract_->Owes(sum) ? 1 : 0);
  });
}

bool CallLog::ShowsMean(const std::string& tensor, Axis axis) const {
  const auto sums = graph_->SumsBehind(tensor);
  // A program that averages over the data-parallel ranks divides those sums on purpose.
  const bool is_batch = axis != Axis::kTp && axis != Axis::kEtp;
  const bool is_habit = contract_->dp_reduction == DpReduction::kMean && is_batch;
  return !is_habit && std::any_of(sums.begin(), sums.end(), [&](const Reduction& sum) {
    return sum.axis == axis && Times(sum, /*divided_only=*/true) > 0;
  });
}

bool CallLog::ShowsStray(const std::string& tensor, Axis owed, Axis used) const {
  const auto sums = graph_->SumsBehind(tensor);
  return std::any_of(sums.begin(), sums.end(), [&](const Reduction& sum) {
    const Reduction stray{sum.tensor, used};
    return sum.axis == owed && (contract_->Owes(sum) || contract_->IsAlone(sum)) &&
           Times(sum) == 0 && Times(stray) > (contract_->Owes(stray) ? 1 : 0);
  });
}

std::vector<CallFact> CallLog::FactsOn(const std::string& tensor,
                                       const Explanation& explanation) const {
  std::vector<CallFact> facts;
  if (!IsKnown()) {
    return facts;
  }
  const auto add = [&](CallFact::Kind kind, const Reduction& sum) {
    facts.push_back({.kind = kind,
                     .sum = sum,
                     .owed = contract_->Owes(sum),
                     .times = Times(sum),
                     .logged = static_cast<std::int64_t>(longest_)});
  };
  const bool may_be_lost =
      explanation.cause == Cause::kMissingSum || explanation.cause == Cause::kWrongGroup;
  for (const Reduction& sum : contract_->Owed()) {
    if (may_be_lost && Contains(explanation.axes, sum.axis) && Times(sum) == 0) {
      add(CallFact::Kind::kAbsent, sum);
    }
  }
  for (const Axis axis : explanation.used) {
    for (const Reduction& sum : graph_->SumsBehind(tensor)) {
      const Reduction stray{sum.tensor, axis};
      if (Contains(explanation.axes, sum.axis) && !contract_->Owes(stray) && Times(stray) > 0) {
        add(CallFact::Kind::kStray, stray);
      }
    }
  }
  for (const Axis axis : explanation.axes) {
    const Reduction own{tensor, axis};
    if (facts.empty() && Times(own) > 0) {
      add(CallFact::Kind::kCounted, own);
    }
  }
  return facts;
}

}  // namespace moe
