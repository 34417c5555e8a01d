// Whether a step on some problem rounds anywhere, told without running it in a coarse dtype.
#pragma once

#include <string>

#include "harness/base/model.h"
#include "harness/layout/tensor_source.h"

namespace moe {

// Follows every sum of the step, forward and backward, down to its elementary terms. They are whole
// multiples of a power of two; while their absolute values add up to at most 256 of it, every
// partial sum, in any order and over any ranks, is a number of bfloat16 (8 significant bits), and
// so of every finer dtype. All chosen scores of a token must be equal, as those of the dyadic fill
// are. Throws Error(where, ...) with the numbers of the first tensor that may round.
void RequireExactness(const Model& model, const TensorSource& inputs, const std::string& where);

}  // namespace moe
