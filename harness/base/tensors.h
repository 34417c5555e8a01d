// The tensors of one step by name: what goes in (the problem) and what comes out (what is judged).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/model.h"
#include "harness/base/tensor_table.h"

namespace moe {

using Shape = std::vector<std::int64_t>;

std::int64_t NumElements(const Shape& shape);  // 1 for a scalar
std::string ToText(const Shape& shape);        // "[8, 24, 16]"

struct TensorInfo {
  std::string name;  // "w1_EFD", "d_gate_ED"
  Shape shape;       // global
};

// The global shape of a tensor of the table. Throws Error for a name that is not in it.
Shape ShapeOf(std::string_view name, const Model& model);
Shape ShapeOf(const TensorRow& tensor, const Model& model);

// The problem, in the order of the table: x_TD, d_y_TD, gate_ED, w1_EFD, w3_EFD, w2_EDF and what
// else the model has.
std::vector<TensorInfo> InputsOf(const Model& model);

// What a step owes, in the order of the table: y_TD, d_x_TD, and d_<parameter> of every parameter.
std::vector<TensorInfo> ResultsOf(const Model& model);

// True for parameters of the routed experts and their gradients, which have one slice per expert
// and lie on the expert mesh: w1_EFD, d_w2_EDF. The gate (gate_ED) belongs to the router and lies
// on the dense mesh.
bool IsExpertWeight(std::string_view name);

}  // namespace moe
