// Experts in values and, where they are asked for, estimates of their error: the Math of expert.h
// that Arithmetic is, and what casts of rows add to it.
#pragma once

#include "reference/arithmetic.h"
#include "reference/expert.h"

namespace moe::reference {

class ExpertArithmetic {
 public:
  using Rows = Estimate;
  using HiddenSum = Estimate;
  using TokenSum = Estimate;

  // Ranks that have some of the hidden units each cast their shares of a sum to `shares`, then add
  // them up.
  ExpertArithmetic(const Arithmetic& math, const Cast& shares);

  Estimate Product(const Operand& a, const Operand& b) const;
  Estimate SumOverHidden(const Operand& a, const Operand& b) const;
  Estimate SumOverTokens(const Operand& a, const Operand& b) const;
  Estimate Multiply(const Operand& a, const Operand& b) const;
  Estimate Add(const Operand& a, const Operand& b) const;
  Estimate Value(const Function& f, const Operand& u) const;
  Estimate Slope(const Function& f, const Operand& u) const;

 private:
  const Arithmetic& math_;
  Units shares_;
};

using EstimatedForward = ExpertForward<ExpertArithmetic>;

struct EstimatedBackward {
  Estimate d_r_ND;
  WeightGradients<Estimate> weights;
};

// With o cast to `out` as it leaves.
EstimatedForward EstimateForward(const Arithmetic& math, const ExpertKind& kind,
                                 const ExpertWeights& weights, const Operand& r_ND,
                                 const Cast& out = {});

// With d_r cast to `in` as it leaves.
EstimatedBackward EstimateBackward(const Arithmetic& math, const ExpertKind& kind,
                                   const ExpertWeights& weights, const EstimatedForward& forward,
                                   const Operand& r_ND, const Operand& d_o_ND, const Cast& in = {});

}  // namespace moe::reference
