// A case's problem as a folder, so that another framework can run exactly the same.
#pragma once

#include <string>

#include "harness/base/dtype.h"
#include "harness/inputs/generator.h"
#include "harness/spec/case_spec.h"

namespace moe {

// Writes inputs.safetensors, the whole inputs in `dtype` (float64, float32 or bfloat16; all hold
// them exactly), and problem.json, which says what they are and what a step owes. The folder is
// made if need be. Returns how many tensors there are. Throws Error(path, ...).
std::size_t WriteProblem(const CaseSpec& spec, const InputGenerator& inputs,
                         const std::string& folder, Dtype dtype);

}  // namespace moe
