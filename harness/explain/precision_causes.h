// Values that are right but for coarser rounding than their dtype's.
#pragma once

#include <vector>

#include "harness/explain/hypothesis.h"

namespace moe {

// Values that have fewer bits than their dtype, each within a rounding to those of what is right.
std::vector<Fit> FindCoarseStorage(const Suspect& suspect);

// Errors on all elements, without a direction, of the size that arithmetic in a coarser dtype
// makes. In one tensor alone such errors say little.
std::vector<Fit> FindCoarseArithmetic(const Suspect& suspect);

}  // namespace moe
