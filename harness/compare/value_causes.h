// Causes that no sum leaves behind: right values in the wrong place, or wrong values in few.
#pragma once

#include <optional>
#include <string>

#include "harness/compare/sum_causes.h"

namespace moe {

// The wrong ranks hold the slice that another rank should hold. Names the axes along which.
std::optional<Fit> FindMisplacedShard(const Suspect& suspect);

// The wrong ranks hold the right experts, tokens or hidden units in another order; or the elements
// of a transposed view in the order of its memory.
std::optional<Fit> FindPermutation(const Suspect& suspect);

// Each rank's share is divided by its own number of tokens, where the
// numbers differ.
std::optional<Fit> FindLocalNormaliser(const Suspect& suspect, const SumCauses& sums);

// Slices that should be zero, such as those of an expert without a token, are not, and nothing else
// is wrong: memory that nobody wrote.
std::optional<Fit> FindLeftovers(const Suspect& suspect, std::string& where);

// But for a few elements everything is right: at most three of a slice or one in a hundred.
std::optional<Fit> FindCorruption(const Suspect& suspect, std::string& where);

// Ranks hold something else than others that should hold the same and are right.
std::optional<Fit> FindStaleReplica(const Suspect& suspect);

// Right, but on a grid of fewer significant bits than the dtype has, each element within half a
// step of what it should be. `option` becomes "24 bits".
std::optional<Fit> FindCoarseStorage(const Suspect& suspect);

// Right up to an error that lies on all elements and units alike, has no part along the reference,
// and is of the size that arithmetic in a coarser dtype gives, which `option` becomes. Of one
// tensor alone that is no more than a likeness.
std::optional<Fit> FindCoarseArithmetic(const Suspect& suspect);

}  // namespace moe
