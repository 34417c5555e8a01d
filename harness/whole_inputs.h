// The inputs of a problem kept whole in memory, for those who read them many times: generating them
// costs as much as a small step.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/base/model.h"
#include "harness/layout/tensor_source.h"

namespace moe {

class WholeInputs : public TensorSource {
 public:
  // Reads all inputs of `model` from `source`, which may go away afterwards.
  WholeInputs(const Model& model, const TensorSource& source);

  void Read(const std::string& name, const Slice& slice, std::span<double> out) const override;

 private:
  struct Input {
    Shape shape;
    std::vector<double> values;
  };
  std::map<std::string, Input> inputs_;
};

}  // namespace moe
