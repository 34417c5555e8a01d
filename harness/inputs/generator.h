// The inputs of a case, made from its seed alone: value = f(seed, tensor, global index), so that
// any shard can be generated without the rest. All values lie on the bfloat16 grid; none of the
// uniform fill is zero. The dyadic fill is described in dyadic_fill.h.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "harness/inputs/dyadic_fill.h"
#include "harness/layout/tensor_source.h"
#include "harness/spec/case_spec.h"

namespace moe {

class InputGenerator : public TensorSource {
 public:
  // Draws every token's row until its routing margin clears MarginFloor of the coarsest dtype and
  // what rounding may take of it at worst, and no idle expert is chosen; keeps only the number of
  // redraws per token. Throws Error(spec.path, ...) with the numbers when a token finds no such
  // row, or when the fill is dyadic and a sum of the step may round all the same.
  explicit InputGenerator(const CaseSpec& spec);

  void Read(const std::string& name, const Slice& slice, std::span<double> out) const override;

  double smallest_logit_margin() const { return smallest_logit_margin_; }

 private:
  double Value(std::uint64_t tensor_key, double scale, std::int64_t index) const;
  void DrawRows(const CaseSpec& spec);

  Model model_;
  std::uint64_t seed_;
  std::vector<std::uint64_t> redraws_T_;
  std::optional<DyadicFill> dyadic_;
  double smallest_logit_margin_ = 0.0;
};

// The smallest distance in logits that keeps a choice of experts beyond doubt in `dtype`: twice the
// rounding of the largest logits that the generator makes (about 4), with room for a framework that
// stores logits in that dtype.
double MarginFloor(Dtype dtype);

}  // namespace moe
