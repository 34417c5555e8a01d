// Right values in wrong places.
#pragma once

#include <vector>

#include "harness/explain/hypothesis.h"

namespace moe {

// Each wrong rank holds the slice of another one.
std::vector<Fit> FindMisplacedShards(const Suspect& suspect);

// Experts, tokens or hidden units in another order, or all elements as they come from memory that
// is read as if it were not transposed.
std::vector<Fit> FindPermutations(const Suspect& suspect);

}  // namespace moe
