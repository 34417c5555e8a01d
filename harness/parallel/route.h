// The router on one rank: logits, scores, choice, combine weights. Written a second time on
// purpose; the reference has its own.
#pragma once

#include <ATen/ATen.h>

#include "harness/base/model.h"

namespace moe::parallel {

struct Choice {
  at::Tensor topk_expert_TK;     // int64
  at::Tensor topk_score_TK;      // combine weights, in the score dtype; differentiable
  at::Tensor topk_selection_TK;  // the scores that chose them, with any bias; not differentiable
};

// [T, E] in the score dtype (float32, or float64 for float64). `gate_bias_E` may be undefined.
at::Tensor Logits(const at::Tensor& x_TD, const at::Tensor& gate_ED, const at::Tensor& gate_bias_E);

// `expert_bias_E` may be undefined; it and the groups take part in the selection only.
Choice Route(const Model& model, const at::Tensor& logits_TE, const at::Tensor& expert_bias_E);

}  // namespace moe::parallel
