// The router, stage by stage: logits, scores, choice, combine weights, and their backward.
#pragma once

#include "harness/base/model.h"
#include "reference/arithmetic.h"
#include "reference/moe_reference.h"

namespace moe::reference {

// z = x gate^T + gate_bias: [T, E].
Estimate Logits(const Arithmetic& math, const Model& model, const Matrix& x_TD,
                const Matrix& gate_ED, const Vector& gate_bias_E);

// softmax over the experts, or sigmoid of each: [T, E].
Estimate Scores(const Arithmetic& math, const Model& model, const Estimate& logits_TE);

// Expert choice and its margins, with bounds where the scores have a worst case. Has no gradient.
Routing Select(const Arithmetic& math, const Model& model, const Estimate& logits_TE,
               const Estimate& scores_TE, const Vector& expert_bias_E);

// The scores of the chosen experts and what they become: p = route_scale * s / sum_k s.
struct CombineWeights {
  Estimate score_TK;   // s of the chosen experts, without expert_bias_E
  Estimate sum_T1;     // sum_k s + 1e-20; empty without route_norm
  Estimate normal_TK;  // s / sum; s itself without route_norm
  Estimate p_TK;       // route_scale * normal
};

CombineWeights WeighSlots(const Arithmetic& math, const Model& model, const Estimate& scores_TE,
                          const Routing& routing);

// From d_p to d_logits: scale, normalisation, gather, score function.
Estimate RouterBackward(const Arithmetic& math, const Model& model, const Routing& routing,
                        const Estimate& scores_TE, const CombineWeights& weights,
                        const Estimate& d_p_TK);

}  // namespace moe::reference
