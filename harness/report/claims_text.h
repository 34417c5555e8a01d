// What a foreign dump says of itself and the judge takes on trust: how tensors lie, what is still
// owed, and where the step computed in a coarser dtype. Put in words, so that a reader can tell a
// wrong claim from a wrong gradient.
#pragma once

#include <string>
#include <vector>

#include "harness/dump/manifest.h"
#include "harness/measure/measure.h"

namespace moe {

// One line per group of tensors that are claimed to lie alike, in the order of the model:
// "d_w1_EFD, d_w3_EFD: S(0) on ep, S(1) on etp, P on edp (summed here)". Axes of size 1 are left
// out.
std::vector<std::string> DescribeClaims(const Manifest& manifest);

// What cannot be judged of this dump, each with the reason: results that are not in it, routing and
// token counts where they were not dumped, replicas where no two ranks hold the same slice.
std::vector<std::string> DescribeGaps(const Manifest& manifest);

// What the declared casts do to the tolerances, as one sentence: "scores_TE in float32: d_gate_ED
// may be off by 3.1e-07 (7.9e-15 without), d_w1_EFD 2.1e-07 (6.2e-15); d_shared_w1_FD as without".
std::string DescribeFloor(const Manifest& manifest, const std::vector<CastEffect>& effects);

}  // namespace moe
