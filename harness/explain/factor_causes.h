// Whether a tensor is the reference times a factor, as a whole or along one path of the backward
// pass, and what such a factor means.
#pragma once

#include <string>
#include <vector>

#include "harness/explain/sum_causes.h"

namespace moe {

// Fits by least squares how often each path's part is in what the wrong ranks hold. Of one factor,
// along one path or several, emits every cause that gives it: a sum counted again or averaged over
// axes of that size, a path lost or doubled, a wrong scale.
std::vector<Fit> FindFactorCauses(const Suspect& suspect, const StepContract* contract);

// The part of the squared error of the wrong ranks that the best factors along the paths leave:
// near 1 for rounding, which no path has a part in.
double ErrorLeftByFactors(const Suspect& suspect);

// What a factor is made of: "the size of ep", "1 over top_k", "the size of etp over the size of
// tp", several where several fit; empty when nothing does.
std::vector<std::string> MeaningsOf(double factor, const Manifest& manifest);

}  // namespace moe
