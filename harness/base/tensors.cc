#include "harness/base/tensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/base/error.h"

namespace moe {

std::int64_t NumElements(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) {
    count *= size;
  }
  return count;
}

std::string ToText(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Shape ShapeOf(std::string_view name, const Model& model) {
  const bool shared = name.starts_with("shared_") || name.starts_with("d_shared_");
  const std::size_t underscore = name.rfind('_');
  Shape shape;
  const std::string_view suffix =
      underscore == std::string_view::npos ? std::string_view{} : name.substr(underscore + 1);
  for (const char letter : suffix) {
    switch (letter) {
      case 'T':
        shape.push_back(model.tokens);
        break;
      case 'D':
        shape.push_back(model.d_model);
        break;
      case 'F':
        shape.push_back(shared ? model.d_shared : model.d_expert);
        break;
      case 'E':
        shape.push_back(model.experts);
        break;
      case 'K':
        shape.push_back(model.top_k);
        break;
      default:
        return {};
    }
  }
  return shape;
}

std::vector<TensorInfo> InputsOf(const Model& model) {
  std::vector<std::string> names = {"x_TD", "d_y_TD", "gate_ED", "w1_EFD", "w3_EFD", "w2_EDF"};
  if (model.gate_bias) {
    names.emplace_back("gate_bias_E");
  }
  if (model.expert_bias) {
    names.emplace_back("expert_bias_E");
  }
  if (model.d_shared > 0) {
    names.insert(names.end(), {"shared_w1_FD", "shared_w3_FD", "shared_w2_DF"});
  }
  if (model.shared_gate) {
    names.emplace_back("shared_gate_D");
  }
  std::vector<TensorInfo> inputs;
  for (const std::string& name : names) {
    inputs.push_back({name, ShapeOf(name, model)});
  }
  return inputs;
}

std::vector<TensorInfo> ResultsOf(const Model& model) {
  std::vector<TensorInfo> results = {{"y_TD", ShapeOf("y_TD", model)},
                                     {"d_x_TD", ShapeOf("d_x_TD", model)}};
  for (const TensorInfo& input : InputsOf(model)) {
    if (input.name != "x_TD" && input.name != "d_y_TD" && input.name != "expert_bias_E") {
      results.push_back({"d_" + input.name, input.shape});
    }
  }
  return results;
}

bool IsExpertWeight(std::string_view name) {
  if (name.starts_with("d_")) {
    name.remove_prefix(2);
  }
  return name == "w1_EFD" || name == "w3_EFD" || name == "w2_EDF";
}

}  // namespace moe
