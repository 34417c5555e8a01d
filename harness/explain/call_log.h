// The log of the sums that ranks took part in, as a witness of what a step did.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/finding.h"
#include "harness/layout/step_graph.h"

namespace moe {

class CallLog {
 public:
  // Either may be missing (null, empty): then there is nothing to witness.
  CallLog(const StepGraph* graph, const std::vector<std::vector<std::string>>& calls);

  bool IsKnown() const { return graph_ != nullptr && !calls_.empty(); }

  // Some sum over `axis` that shows in `tensor` was made more often than the contract owes it, or
  // was divided by its number of ranks though it owes none of that.
  bool ShowsRepeat(const std::string& tensor, Axis axis) const;
  bool ShowsMean(const std::string& tensor, Axis axis) const;
  // A sum that shows in `tensor` was made over `used`, over which the contract does not owe it, and
  // not over `owed`, over which it does.
  bool ShowsStray(const std::string& tensor, Axis owed, Axis used) const;

  // What the log says of a cause: sums that are in the contract and not in the log, the other way
  // round, or how often one is in both. Empty when it says nothing.
  std::vector<CallFact> FactsOn(const std::string& tensor, const Explanation& explanation) const;

 private:
  // The most that any rank took part in this sum; with those that were divided, or these alone.
  std::ptrdiff_t Times(const Reduction& reduction, bool divided_only = false) const;

  const StepGraph* graph_;
  const StepContract* contract_;
  const std::vector<std::vector<std::string>>& calls_;
  std::size_t longest_ = 0;
};

}  // namespace moe
