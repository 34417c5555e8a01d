// Routing of a dump against the reference: the choice of experts first, so that a flip is never
// blamed on a reduction, and the token counts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/dump/dump.h"
#include "harness/explain/finding.h"
#include "reference/moe_reference.h"

namespace moe {

struct RoutingComparison {
  std::optional<Finding> finding;  // none where topk_expert_TK was not dumped
  // With what the reference is to be run where the dump's choice is another one than its own.
  std::optional<reference::Routing> observed_routing;
  double smallest_margin = 0.0;  // of the selection scores
  std::vector<std::string> notes;
};

// A choice that differs from the reference's is a tie where rounding may have made it: every expert
// that is chosen instead of another has a selection score within the two worst-case bounds of the
// other's. A tie is no failure.
//
// Throws Error(dump.name, ...) for a choice in doubt that must be decided, with the numbers; for
// experts that do not exist or are named twice.
struct RoutingRules {
  // For a case: no choice of the reference may be within rounding, or a clean run might fail by
  // luck.
  bool must_be_decided = false;
  bool is_exact = false;  // nothing rounds, so there are no ties
};
RoutingComparison CompareRouting(const Dump& dump, const reference::Problem& problem,
                                 const RoutingRules& rules);

// Token counts are whole numbers and compared exactly. Empty where they were not dumped.
std::optional<Finding> CompareCounts(const Dump& dump,
                                     const std::vector<std::int64_t>& tokens_per_expert_E);

}  // namespace moe
