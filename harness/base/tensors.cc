#include "harness/base/tensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

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
  return ShapeOf(TensorOf(name), model);
}

Shape ShapeOf(const TensorRow& tensor, const Model& model) {
  Shape shape;
  for (const char letter : tensor.dims) {
    shape.push_back(SizeOf(static_cast<Dim>(letter), model));
  }
  return shape;
}

std::vector<TensorInfo> InputsOf(const Model& model) {
  std::vector<TensorInfo> inputs;
  for (const TensorRow& row : TensorTable()) {
    if (row.IsInput() && row.IsIn(model)) {
      inputs.push_back({std::string(row.name), ShapeOf(row, model)});
    }
  }
  return inputs;
}

std::vector<TensorInfo> ResultsOf(const Model& model) {
  std::vector<TensorInfo> results;
  for (const TensorRow& row : TensorTable()) {
    if (row.IsResult() && row.IsIn(model)) {
      results.push_back({std::string(row.name), ShapeOf(row, model)});
    }
  }
  return results;
}

bool IsExpertWeight(std::string_view name) {
  const TensorRow* row = FindTensor(name);
  return row != nullptr && row->mesh == MeshKind::kExpert &&
         (row->role == Role::kParameter || row->role == Role::kGradient);
}

}  // namespace moe
