// Which tensor of the table is which member of the problem.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "reference/moe_reference.h"

namespace moe::reference {

// Gives an input by its name (harness/base/tensor_table.h): one expert's slice of those that have
// one for each, else, with expert -1, all of it. A vector is one row.
using TensorReader = std::function<Matrix(const std::string& name, std::int64_t expert)>;

// Reads everything but the routed experts' weights at once; those one expert at a time, when asked,
// by a copy of `read`.
Problem ReadProblem(const Model& model, const TensorReader& read);

}  // namespace moe::reference
