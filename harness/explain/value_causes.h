// Wrong values that no sum and no factor gives.
#pragma once

#include <vector>

#include "harness/explain/sum_causes.h"

namespace moe {

// Every rank's contribution divided by its own number of tokens, rows or slots, instead of the mean
// of all.
std::vector<Fit> FindLocalNormalisers(const Suspect& suspect, const SumCauses& sums);

// What one rank sent to the experts is missing in their gradients, or there twice: a dispatch that
// lost its rows.
std::vector<Fit> FindSourceShares(const Suspect& suspect);

// Scores of slots that other ranks route have a gradient here too.
std::vector<Fit> FindLeakedSlots(const Suspect& suspect);

// Something where an expert got no rows, and all else right.
std::vector<Fit> FindLeftovers(const Suspect& suspect);

// A few elements are something else.
std::vector<Fit> FindCorruption(const Suspect& suspect);

// Few of the ranks that hold the same slice hold another one.
std::vector<Fit> FindStaleReplicas(const Suspect& suspect);

}  // namespace moe
