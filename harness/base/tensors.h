// The tensors of one step by name: what goes in (the problem) and what comes out (what is judged).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "harness/base/model.h"

namespace moe {

using Shape = std::vector<std::int64_t>;

std::int64_t NumElements(const Shape& shape);  // 1 for a scalar
std::string ToText(const Shape& shape);        // "[8, 24, 16]"

struct TensorInfo {
  std::string name;  // "w1_EFD", "d_gate_ED"
  Shape shape;       // global
};

// The global shape of a tensor of `model`, read off the suffix of its name (see model.h).
// Empty when the name has no suffix of known letters.
Shape ShapeOf(std::string_view name, const Model& model);

// The problem: x_TD, d_y_TD, gate_ED, w1_EFD, w3_EFD, w2_EDF, and where the model has them
// gate_bias_E, expert_bias_E, shared_w1_FD, shared_w3_FD, shared_w2_DF, shared_gate_D.
std::vector<TensorInfo> InputsOf(const Model& model);

// What a step owes: y_TD, d_x_TD, and d_<parameter> for every parameter with a gradient (all
// inputs but x_TD, d_y_TD and expert_bias_E).
std::vector<TensorInfo> ResultsOf(const Model& model);

// True for tensors with one slice per expert that live on the expert mesh: w1_EFD, d_w2_EDF.
// The gate (gate_ED) belongs to the router and lives on the dense mesh.
bool IsExpertWeight(std::string_view name);

}  // namespace moe
