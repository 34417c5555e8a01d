// One expert, o = w2 (silu(w1 r) * (w3 r)), forward and backward.
#pragma once

#include "reference/arithmetic.h"
#include "reference/moe_reference.h"

namespace moe::reference {

// N rows through one expert; what the backward needs of the forward.
struct SwiGluForward {
  Estimate gate_NF;    // r w1^T
  Estimate up_NF;      // r w3^T
  Estimate silu_NF;    // silu(gate)
  Estimate hidden_NF;  // silu(gate) * up
  Estimate o_ND;       // hidden w2^T
};

struct SwiGluBackward {
  Estimate d_r_ND;
  Estimate d_w1_FD;
  Estimate d_w3_FD;
  Estimate d_w2_DF;
};

// silu'(u) = s + u s (1 - s) with s = sigmoid(u).
double SiluSlope(double u);

// With o cast to `out` as it leaves.
SwiGluForward RunSwiGlu(const Arithmetic& math, const Operand& r_ND, const SwiGluWeights& weights,
                        const Cast& out = {});

// With d_r cast to `in` as it leaves.
SwiGluBackward RunSwiGluBackward(const Arithmetic& math, const Operand& r_ND,
                                 const SwiGluWeights& weights, const SwiGluForward& forward,
                                 const Operand& d_o_ND, const Cast& in = {});

}  // namespace moe::reference
