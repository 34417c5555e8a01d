#include "reference/swiglu.h"

#include <cmath>

namespace moe::reference {
namespace {

double Silu(double u) {
  return u * Sigmoid(u);
}

// silu''(u) = s (1 - s) (2 + u (1 - 2 s)).
double SiluCurvature(double u) {
  const double s = Sigmoid(u);
  return SigmoidSlopeOf(s) * (2.0 + u * (1.0 - 2.0 * s));
}

// The two terms of silu', which cancel near u = -1.28.
double SiluSlopeSize(double u) {
  const double s = Sigmoid(u);
  return s + std::abs(u) * SigmoidSlopeOf(s);
}

}  // namespace

double SiluSlope(double u) {
  const double s = Sigmoid(u);
  return s + u * SigmoidSlopeOf(s);
}

namespace {

// A sum over hidden units whose shares, on ranks that have some of them each, are cast before they
// are added up.
Units SharesIn(const Arithmetic& math, const Cast& cast) {
  Units units = math.UnitsOf();
  units.reduce = math.UnitsOf(cast).reduce;
  return units;
}

}  // namespace

SwiGluForward RunSwiGlu(const Arithmetic& math, const Operand& r_ND, const SwiGluWeights& weights,
                        const Cast& out) {
  const double store = math.unit().store;
  SwiGluForward f;
  f.gate_NF = math.Product(r_ND, Transposed(weights.w1_FD), Sum::kLocal);
  f.up_NF = math.Product(r_ND, Transposed(weights.w3_FD), Sum::kLocal);
  f.silu_NF = math.Elementwise(f.gate_NF, Silu, SiluSlope, /*size=*/Silu, store);
  f.hidden_NF = math.Multiply(f.silu_NF, f.up_NF, store);
  f.o_ND = math.Product(f.hidden_NF, Transposed(weights.w2_DF), Sum::kHidden, SharesIn(math, out));
  if (out.unit > 0.0) {
    f.o_ND = math.Rounded(f.o_ND, out);
  }
  return f;
}

SwiGluBackward RunSwiGluBackward(const Arithmetic& math, const Operand& r_ND,
                                 const SwiGluWeights& weights, const SwiGluForward& forward,
                                 const Operand& d_o_ND, const Cast& in) {
  const double store = math.unit().store;
  const Estimate d_hidden_NF = math.Product(d_o_ND, weights.w2_DF, Sum::kLocal);
  const Estimate d_up_NF = math.Multiply(d_hidden_NF, forward.silu_NF, store);
  const Estimate d_silu_NF = math.Multiply(d_hidden_NF, forward.up_NF, store);
  const Estimate slope_NF =
      math.Elementwise(forward.gate_NF, SiluSlope, SiluCurvature, SiluSlopeSize, store);
  const Estimate d_gate_NF = math.Multiply(d_silu_NF, slope_NF, store);

  SwiGluBackward b;
  b.d_w1_FD = math.Gradient(Transposed(d_gate_NF), r_ND);
  b.d_w3_FD = math.Gradient(Transposed(d_up_NF), r_ND);
  b.d_w2_DF = math.Gradient(Transposed(d_o_ND), forward.hidden_NF);
  const Units shares = SharesIn(math, in);
  b.d_r_ND = math.Add(math.Product(d_gate_NF, weights.w1_FD, Sum::kHidden, shares),
                      math.Product(d_up_NF, weights.w3_FD, Sum::kHidden, shares), store);
  if (in.unit > 0.0) {
    b.d_r_ND = math.Rounded(b.d_r_ND, in);
  }
  return b;
}

}  // namespace moe::reference
