// The same MoE step by LibTorch's autograd on one device: what the reference's hand-written
// backward is compared with. Nothing here needs LibTorch's headers, which do not go with Eigen's.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/base/model.h"
#include "harness/layout/tensor_source.h"

namespace moe {

// Every result of the step by name (ResultsOf), whole and row-major. Computes and stores
// everything, the scores too, in `dtype`: float64, float32 or bfloat16.
std::map<std::string, std::vector<double>> AutogradStep(const Model& model,
                                                        const TensorSource& inputs,
                                                        Dtype dtype = Dtype::kFloat64);

}  // namespace moe
