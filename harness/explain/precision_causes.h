// Causes that leave values which are right but coarser than the dtype: in storage or in arithmetic.
#pragma once

#include <optional>

#include "harness/explain/sum_causes.h"

namespace moe {

// Right, but on a grid of fewer significant bits than the dtype has, each element within half a
// step of what it should be. `option` becomes "24 bits".
std::optional<Fit> FindCoarseStorage(const Suspect& suspect);

// Right up to an error that lies on all elements and units alike, has no part along the reference,
// and is of the size that arithmetic in a coarser dtype gives, which `option` becomes. Of one
// tensor alone that is no more than a likeness.
std::optional<Fit> FindCoarseArithmetic(const Suspect& suspect);

}  // namespace moe
