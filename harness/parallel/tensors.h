// Between moegate's dtypes and bytes and LibTorch's tensors.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "harness/base/dtype.h"
#include "harness/layout/tensor_source.h"

namespace moe::parallel {

at::ScalarType ScalarTypeOf(Dtype dtype);

// Scores are computed in float32 or better.
at::ScalarType ScoreType(at::ScalarType dtype);

// One slice of an input, as a tensor of `dtype` on the CPU.
at::Tensor ReadTensor(const TensorSource& source, const std::string& name, const Slice& slice,
                      Dtype dtype);

// A safetensors file of these tensors.
std::vector<std::byte> Encode(const std::map<std::string, at::Tensor>& tensors);

}  // namespace moe::parallel
