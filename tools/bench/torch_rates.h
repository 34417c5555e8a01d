// What LibTorch does on this machine, one thread, for comparison with the reference. Nothing here
// needs LibTorch's headers, which do not go with Eigen's.
#pragma once

#include <cstdint>
#include <memory>

#include "harness/base/model.h"
#include "harness/layout/tensor_source.h"

namespace moe::bench {

// LibTorch's matrix product in float64: GFLOP per CPU second for [size, size] x [size, size], best
// of some runs.
double TorchGemmRate(std::int64_t size);

// A plain softmax, after_experts MoE step in LibTorch, gradients by autograd in float64.
class TorchStep {
 public:
  // Reads every input once.
  TorchStep(const Model& model, const TensorSource& inputs);
  ~TorchStep();
  TorchStep(const TorchStep&) = delete;
  TorchStep& operator=(const TorchStep&) = delete;

  // y_TD, and the gradients of x_TD, gate_ED, w1_EFD, w3_EFD and w2_EDF. Returns the CPU seconds of
  // it.
  double Run();
  // The sum of the absolute elements of d_gate_ED of the last run: shows that it is the same
  // problem.
  double gate_gradient_size() const { return gate_gradient_size_; }

 private:
  struct Leaves;
  std::unique_ptr<Leaves> leaves_;
  double gate_gradient_size_ = 0.0;
};

}  // namespace moe::bench
