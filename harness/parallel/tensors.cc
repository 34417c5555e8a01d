#include "harness/parallel/tensors.h"

#include <fmt/format.h>

#include <span>

#include "harness/base/error.h"
#include "harness/dump/safetensors.h"

namespace moe::parallel {
namespace {

Dtype DtypeOf(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kBFloat16:
      return Dtype::kBfloat16;
    case at::kLong:
      return Dtype::kInt64;
    default:
      throw Error("", fmt::format("tensors of type {} are not dumped", at::toString(type)));
  }
}

}  // namespace

at::ScalarType ScalarTypeOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return at::kDouble;
    case Dtype::kFloat32:
      return at::kFloat;
    case Dtype::kBfloat16:
      return at::kBFloat16;
    default:
      throw Error("", fmt::format("the step does not run in {}", ToText(dtype)));
  }
}

at::ScalarType ScoreType(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor ReadTensor(const TensorSource& source, const std::string& name, const Slice& slice,
                      Dtype dtype) {
  const at::Tensor values = at::empty(slice.LocalShape(), at::kDouble);
  source.Read(name, slice,
              {values.mutable_data_ptr<double>(), static_cast<std::size_t>(values.numel())});
  return values.to(ScalarTypeOf(dtype));
}

std::vector<std::byte> Encode(const std::map<std::string, at::Tensor>& tensors) {
  std::map<std::string, at::Tensor> whole;  // keeps the contiguous copies alive
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& kept = whole[name] = tensor.cpu().contiguous();
    views[name] = {DtypeOf(kept.scalar_type()), kept.sizes().vec(),
                   std::as_bytes(std::span(static_cast<const char*>(kept.const_data_ptr()),
                                           static_cast<std::size_t>(kept.nbytes())))};
  }
  return EncodeSafetensors(views);
}

}  // namespace moe::parallel
