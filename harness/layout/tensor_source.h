// Where the whole problem's values come from: the generator, or a dump. Any slice can be read
// alone.
#pragma once

#include <span>
#include <string>

#include "harness/layout/placement.h"

namespace moe {

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // Writes the elements of `slice` of the input tensor `name` (InputsOf), row-major, to `out`,
  // which has exactly NumElements(slice.LocalShape()) elements. Safe to call from several threads.
  virtual void Read(const std::string& name, const Slice& slice, std::span<double> out) const = 0;
};

}  // namespace moe
