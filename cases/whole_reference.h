// For tests: the reference step of a whole problem.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/base/model.h"
#include "harness/layout/tensor_source.h"

namespace moe {

// Every result of ResultsOf(model) by name, row-major and whole; `inputs` has those of InputsOf.
std::map<std::string, std::vector<double>> WholeReference(const Model& model,
                                                          const TensorSource& inputs);

}  // namespace moe
