#include "reference/expert_estimate.h"

#include <utility>

namespace moe::reference {

ExpertArithmetic::ExpertArithmetic(const Arithmetic& math, const Cast& shares)
    : math_(math), shares_(math.UnitsOf()) {
  shares_.reduce = math.UnitsOf(shares).reduce;
}

Estimate ExpertArithmetic::Product(const Operand& a, const Operand& b) const {
  return math_.Product(a, b, Sum::kLocal);
}

Estimate ExpertArithmetic::SumOverHidden(const Operand& a, const Operand& b) const {
  return math_.Product(a, b, Sum::kHidden, shares_);
}

Estimate ExpertArithmetic::SumOverTokens(const Operand& a, const Operand& b) const {
  return math_.Gradient(Transposed(a), b);
}

Estimate ExpertArithmetic::Multiply(const Operand& a, const Operand& b) const {
  return math_.Multiply(a, b, math_.unit().store);
}

Estimate ExpertArithmetic::Add(const Operand& a, const Operand& b) const {
  return math_.Add(a, b, math_.unit().store);
}

Estimate ExpertArithmetic::Value(const Function& f, const Operand& u) const {
  return math_.Elementwise(u, f.value, f.slope, f.size, math_.unit().store);
}

Estimate ExpertArithmetic::Slope(const Function& f, const Operand& u) const {
  return math_.Elementwise(u, f.slope, f.curvature, f.slope_size, math_.unit().store);
}

EstimatedForward EstimateForward(const Arithmetic& math, const ExpertKind& kind,
                                 const ExpertWeights& weights, const Operand& r_ND,
                                 const Cast& out) {
  EstimatedForward forward = RunForward(ExpertArithmetic(math, out), kind, weights, r_ND);
  if (out.unit > 0.0) {
    forward.o_ND = math.Rounded(forward.o_ND, out);
  }
  return forward;
}

EstimatedBackward EstimateBackward(const Arithmetic& math, const ExpertKind& kind,
                                   const ExpertWeights& weights, const EstimatedForward& forward,
                                   const Operand& r_ND, const Operand& d_o_ND, const Cast& in) {
  const ExpertArithmetic expert_math(math, in);
  ExpertBackward backward = RunBackward(expert_math, kind, weights, forward, d_o_ND);
  WeightGradients gradients = GradientsOfWeights(expert_math, forward, backward, r_ND, d_o_ND);
  if (in.unit > 0.0) {
    backward.d_r_ND = math.Rounded(backward.d_r_ND, in);
  }
  return {std::move(backward.d_r_ND), std::move(gradients)};
}

}  // namespace moe::reference
