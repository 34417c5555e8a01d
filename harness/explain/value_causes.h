// Causes that no sum leaves behind: shares divided by other counts, and wrong values in few places,
// of which Fit::text names the first.
#pragma once

#include <optional>

#include "harness/explain/sum_causes.h"

namespace moe {

// Each rank's share is divided by its own number of tokens, rows or slots, where the numbers
// differ.
std::optional<Fit> FindLocalNormaliser(const Suspect& suspect, const SumCauses& sums);

// Slices that should be zero, such as those of an expert without a token, are not, and nothing else
// is wrong: memory that nobody wrote.
std::optional<Fit> FindLeftovers(const Suspect& suspect);

// But for a few elements everything is right: at most three of a slice or one in a hundred.
std::optional<Fit> FindCorruption(const Suspect& suspect);

// Ranks hold something else than others that should hold the same and are right.
std::optional<Fit> FindStaleReplica(const Suspect& suspect);

}  // namespace moe
