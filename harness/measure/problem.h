// From where a problem's values come to what the reference wants.
#pragma once

#include "harness/dump/dump.h"
#include "harness/layout/tensor_source.h"
#include "reference/moe_reference.h"

namespace moe {

// Reads everything but the routed experts' weights at once; those one expert at a time, when asked.
// `source` must outlive the result.
reference::Problem MakeProblem(const Model& model, const TensorSource& source);

// The problem that a dump carries: its inputs file, or input tensors in its rank files put together
// by their placements. Throws Error(dump.name, ...) naming the input that is in neither.
class DumpedProblem : public TensorSource {
 public:
  explicit DumpedProblem(const Dump& dump);
  void Read(const std::string& name, const Slice& slice, std::span<double> out) const override;

 private:
  const Dump& dump_;
};

}  // namespace moe
