// Steps that differ in one option of the model: what a framework computes that applies the score on
// the other side of the experts, or forgets to normalise it.
#pragma once

#include <string>
#include <vector>

#include "harness/base/model.h"

namespace moe {

struct ModelVariant {
  std::string option;  // "score_placement"
  std::string value;   // "before_experts"
  Model model;
};

std::vector<ModelVariant> VariantsOf(const Model& model);

}  // namespace moe
