// Routing of a dump against the reference: the choice of experts first, so that a flip is never
// blamed on a reduction, and the token counts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "harness/dump/dump.h"
#include "reference/moe_reference.h"

namespace moe {

// How far a token's selection is from another one, and how far rounding may move it.
struct RoutingMargin {
  std::int64_t token = 0;
  double margin = 0.0;  // of the selection scores
  double bound = 0.0;
};

struct RoutingComparison {
  bool compared = false;         // topk_expert_TK was dumped
  double smallest_margin = 0.0;  // of the selection scores, over all tokens
  // The least decided token, where rounding may decide it and no choice was dumped that says how.
  std::optional<RoutingMargin> in_doubt;
  std::int64_t tied = 0;     // tokens that chose otherwise within rounding,
  std::int64_t flipped = 0;  // and beyond it
  std::optional<RoutingMargin> first_tie;
  // The first token that was found to have flipped, with both choices in ascending order and in the
  // reference's.
  struct Flip {
    RoutingMargin margin;
    std::vector<std::int64_t> chosen;
    std::vector<std::int64_t> wanted;
  };
  std::optional<Flip> first_flip;
  std::vector<std::int64_t> ranks;  // that chose otherwise beyond rounding, ascending
  // With what the reference is to be run where the dump's choice is another one than its own.
  std::optional<reference::Routing> observed_routing;
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

// Token counts are whole numbers and compared exactly.
struct CountComparison {
  struct Miscount {
    std::int64_t expert = 0;
    double got = 0.0;
    double want = 0.0;
  };
  std::optional<Miscount> first;
  double error = 0.0;               // the largest, relative
  std::vector<std::int64_t> ranks;  // that hold a wrong one, ascending
};

// Empty where they were not dumped.
std::optional<CountComparison> CompareCounts(const Dump& dump,
                                             const std::vector<std::int64_t>& tokens_per_expert_E);

}  // namespace moe
