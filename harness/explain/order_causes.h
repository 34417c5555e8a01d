// Causes that leave right values in wrong places: another rank's shard, or another order.
#pragma once

#include <optional>

#include "harness/explain/sum_causes.h"

namespace moe {

// The wrong ranks hold the slice that another rank should hold. Names the axes along which.
std::optional<Fit> FindMisplacedShard(const Suspect& suspect);

// The wrong ranks hold the right experts, tokens or hidden units in another order; or the elements
// of a transposed view in the order of its memory.
std::optional<Fit> FindPermutation(const Suspect& suspect);

}  // namespace moe
