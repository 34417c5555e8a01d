#include "harness/whole_inputs.h"

#include "harness/layout/placement.h"

namespace moe {

WholeInputs::WholeInputs(const Model& model, const TensorSource& source) {
  for (const TensorInfo& info : InputsOf(model)) {
    Input& input = inputs_[info.name];
    input.shape = info.shape;
    input.values.resize(static_cast<std::size_t>(NumElements(info.shape)));
    source.Read(info.name, WholeOf(info.shape), input.values);
  }
}

void WholeInputs::Read(const std::string& name, const Slice& slice, std::span<double> out) const {
  const Input& input = inputs_.at(name);
  const std::vector<std::int64_t>& columns = slice.index.back();
  const auto width = static_cast<std::size_t>(input.shape.back());
  // Row by row: the place of a row, then its columns.
  Slice rows = slice;
  rows.index.pop_back();
  std::vector<std::size_t> at(rows.index.size(), 0);
  for (std::size_t next = 0; next < out.size(); Advance(rows, at)) {
    std::size_t row = 0;
    for (std::size_t dim = 0; dim < at.size(); ++dim) {
      row = row * static_cast<std::size_t>(input.shape[dim]) +
            static_cast<std::size_t>(rows.index[dim][at[dim]]);
    }
    for (const std::int64_t column : columns) {
      out[next++] = input.values[row * width + static_cast<std::size_t>(column)];
    }
  }
}

}  // namespace moe
