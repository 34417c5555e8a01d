// Missing sums as the values alone show them, where nothing is known of whose share is whose.
#pragma once

#include <vector>

#include "harness/explain/sum_causes.h"

namespace moe {

// Products of axes on which the tensor replicates, whose ranks hold different values that add up to
// the reference.
std::vector<Fit> FindReplicaSums(const Suspect& suspect);

}  // namespace moe
