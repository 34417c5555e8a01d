// A tensor as it lies in memory or in a mapped file: dtype, shape and bytes that somebody else
// owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "harness/base/dtype.h"
#include "harness/base/tensors.h"

namespace moe {

struct TensorView {
  Dtype dtype = Dtype::kFloat64;
  Shape shape;
  std::span<const std::byte> bytes;  // row-major, little-endian, any alignment

  // Element `index` (row-major) as a double; exact for every float dtype, and for integers up to
  // 2^53. The caller keeps index below NumElements(shape).
  double At(std::int64_t index) const;

  // Element `index` of an integer tensor. Throws Error for a float tensor.
  std::int64_t IntegerAt(std::int64_t index) const;

  // Elements first .. first + out.size() - 1 as doubles.
  void Read(std::int64_t first, std::span<double> out) const;
};

}  // namespace moe
