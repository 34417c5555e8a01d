// A step of the forward pass whose backward is stated beside it. LibTorch's own functional
// collectives give wrong or undefined gradients from C++, so every collective of the step is
// written with this.
#pragma once

#include <ATen/ATen.h>

#include <functional>

namespace moe::parallel {

using TensorMap = std::function<at::Tensor(const at::Tensor&)>;

// forward(input), differentiable: the gradient of the input is backward(gradient of the output),
// called with a contiguous tensor. Both run outside the autograd graph.
at::Tensor WithBackward(const at::Tensor& input, const TensorMap& forward, TensorMap backward);

// Either half may be this.
at::Tensor Identity(const at::Tensor& input);

}  // namespace moe::parallel
